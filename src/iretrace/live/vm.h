/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The virtual machine of one run, and what is in it when the guest begins. */
static void set_code_and_data(struct kvm_sregs *sregs, uint32_t cs, uint32_t ss)
{
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = cs, .type = 11, .present = 1, .dpl = cs & 3, .s = 1, .l = 1, .g = 1,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = ss, .type = 3, .present = 1, .dpl = ss & 3, .s = 1, .db = 1, .g = 1,
	};

	sregs->cs = code;
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
}

static void set_system(struct kvm_sregs *sregs)
{
	sregs->tr = (struct kvm_segment){
		.base = TSS, .limit = 0x67, .selector = TSS_SELECTOR, .type = 11, .present = 1,
	};
	sregs->gdt = (struct kvm_dtable){ .base = GDT, .limit = 0x4f };
	sregs->idt = (struct kvm_dtable){ .base = IDT, .limit = 0xfff };
	sregs->cr0 = 0x80000033;
	sregs->cr3 = PAGE_TABLES;
	sregs->cr4 = 0x220;
	sregs->efer = guest->efer;
}

/* What the hardware has, without SVM if the guest is not to have it. */
static void set_cpuid(void)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entry[200];
	} cpuid;

	cpuid.head.nent = 200;
	must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	for (unsigned i = 0; i < cpuid.head.nent; i++)
		if (cpuid.entry[i].function == 0x80000001 && !guest->svm)
			cpuid.entry[i].ecx &= ~4u;
	must(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
}

static void set_syscall(void)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry[3];
	} msrs = {
		.head.nmsrs = 3,
		.entry = { { .index = MSR_STAR, .data = STAR },
			   { .index = MSR_LSTAR, .data = guest->lstar },
			   { .index = MSR_SYSCALL_MASK, .data = SYSCALL_MASK } },
	};

	if (ioctl(vcpu, KVM_SET_MSRS, &msrs) != 3)
		fail("KVM_SET_MSRS");
}

static void enable_apic(void)
{
	struct kvm_lapic_state lapic;

	must(ioctl(vcpu, KVM_GET_LAPIC, &lapic), "KVM_GET_LAPIC");
	*(uint32_t *)(lapic.regs + 0xf0) = 0x1ff;
	must(ioctl(vcpu, KVM_SET_LAPIC, &lapic), "KVM_SET_LAPIC");
}

static void add_memory(uint32_t slot, uint64_t address, uint64_t size, void *at)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .guest_phys_addr = address, .memory_size = size, .userspace_addr = (uintptr_t)at,
	};

	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
}

/* The same memory for SMM, which KVM has in an address space of its own, and the page where INIT leads. */
static void add_firmware(void)
{
	uint8_t jump[] = { 0xea, 0, 0, FIRMWARE >> 4 & 0xff, FIRMWARE >> 12 }; /* ljmp FIRMWARE */

	must(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_X86_SMM) > 0 ? 0 : -1, "KVM_CAP_X86_SMM");
	memcpy(reset_page + RESET_VECTOR, jump, sizeof jump);
	add_memory(1, RESET_PAGE, PAGE, reset_page);
	add_memory(1 << 16, 0, MEMORY_SIZE, memory);
}

/* What marks append, each in the top byte of a register that neither RSM nor INIT changes. */
static void load_digits(void)
{
	struct kvm_xsave xsave;
	uint8_t *bytes = (uint8_t *)&xsave;

	must(ioctl(vcpu, KVM_GET_XSAVE, &xsave), "KVM_GET_XSAVE");
	for (unsigned n = 0; n < MARKS_REGISTER; n++)
		bytes[XMM(n) + 15] = n + 1;
	bytes[XSTATE_BV] |= XSTATE_SSE;
	must(ioctl(vcpu, KVM_SET_XSAVE, &xsave), "KVM_SET_XSAVE");
}

static void make_vm(void)
{
	struct kvm_mp_state runnable = { KVM_MP_STATE_RUNNABLE };
	struct kvm_sregs sregs;

	must(vm = ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	must(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
	add_memory(0, 0, MEMORY_SIZE, memory);
	if (guest->lasting)
		add_firmware();
	if (guest->ap)
		must(ioctl(vm, KVM_SET_BOOT_CPU_ID, 1), "KVM_SET_BOOT_CPU_ID");
	must(vcpu = ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		fail("mmap of the vCPU");
	stats = ioctl(vcpu, KVM_GET_STATS_FD, 0);
	if (!ticks.at) {
		find_counter(&ticks);
		find_counter(&blocking);
	}
	set_cpuid();
	must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	set_system(&sregs);
	set_code_and_data(&sregs, CODE_SELECTOR, DATA_SELECTOR);
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	if (guest->lstar)
		set_syscall();
	enable_apic();
	must(ioctl(vcpu, KVM_SET_MP_STATE, &runnable), "KVM_SET_MP_STATE");
	if (guest->lasting)
		load_digits();
}

static void drop_vm(void)
{
	munmap(run, run_size);
	if (stats >= 0)
		close(stats);
	close(vcpu);
	close(vm);
}

static void start_at(uint64_t rip, uint64_t rflags, uint64_t rcx)
{
	struct kvm_regs regs = {
		.rip = rip, .rflags = rflags, .rsp = MAIN_STACK_TOP, .rsi = guest->ss,
		.rcx = rcx, .rdi = VALUES, .r13 = NOT_CANONICAL, .r14 = LOG,
	};

	must(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static void load_memory(void)
{
	const struct chunk *chunk = (const void *)(guest + 1);

	memset(memory, 0, MEMORY_SIZE);
	for (unsigned i = 0; i < guest->chunks; i++) {
		memcpy(memory + chunk->address, chunk + 1, chunk->size);
		chunk = (const void *)((const uint8_t *)(chunk + 1) + (chunk->size + 3) / 4 * 4);
	}
}
