/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * All that a VMM saves of a vCPU and restores, in QEMU's order: into the same vCPU, as for a snapshot that is taken back at
 * once, or into one that has been made for it in another VM, as at the end of a migration.
 */
#define EFER_SVME 0x1000

static const uint32_t carried_msrs[] = {
	0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, /* STAR, LSTAR, CSTAR, SFMASK */
	0xc0000102, 0x1d9, 0x9e, /* KERNEL_GS_BASE, DEBUGCTL, SMBASE */
};

#define CARRIED (sizeof carried_msrs / sizeof *carried_msrs)

struct state {
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_xsave xsave;
	struct kvm_xcrs xcrs;
	struct kvm_sregs sregs;
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry[CARRIED];
	} msrs;
	struct kvm_lapic_state lapic;
	struct kvm_debugregs debugregs;
	struct {
		struct kvm_nested_state head;
		uint8_t rest[0x2000];
	} nested;
};

static void save(struct state *state)
{
	memset(state, 0, sizeof *state);
	must(ioctl(vcpu, KVM_GET_VCPU_EVENTS, &state->events), "KVM_GET_VCPU_EVENTS");
	must(ioctl(vcpu, KVM_GET_MP_STATE, &state->mp), "KVM_GET_MP_STATE");
	must(ioctl(vcpu, KVM_GET_REGS, &state->regs), "KVM_GET_REGS");
	must(ioctl(vcpu, KVM_GET_XSAVE, &state->xsave), "KVM_GET_XSAVE");
	must(ioctl(vcpu, KVM_GET_XCRS, &state->xcrs), "KVM_GET_XCRS");
	must(ioctl(vcpu, KVM_GET_SREGS, &state->sregs), "KVM_GET_SREGS");
	state->msrs.head.nmsrs = CARRIED;
	for (unsigned i = 0; i < CARRIED; i++)
		state->msrs.entry[i].index = carried_msrs[i];
	/* As many as this kernel has: SMBASE, the last one, not without SMM. */
	must(state->msrs.head.nmsrs = ioctl(vcpu, KVM_GET_MSRS, &state->msrs), "KVM_GET_MSRS");
	must(ioctl(vcpu, KVM_GET_LAPIC, &state->lapic), "KVM_GET_LAPIC");
	must(ioctl(vcpu, KVM_GET_DEBUGREGS, &state->debugregs), "KVM_GET_DEBUGREGS");
	state->nested.head.size = sizeof state->nested;
	must(ioctl(vcpu, KVM_GET_NESTED_STATE, &state->nested), "KVM_GET_NESTED_STATE");
}

static void restore(struct state *state)
{
	must(ioctl(vcpu, KVM_SET_LAPIC, &state->lapic), "KVM_SET_LAPIC");
	must(ioctl(vcpu, KVM_SET_SREGS, &state->sregs), "KVM_SET_SREGS");
	if (state->sregs.efer & EFER_SVME) /* it holds GIF, which is 1 where there is no SVM */
		must(ioctl(vcpu, KVM_SET_NESTED_STATE, &state->nested), "KVM_SET_NESTED_STATE");
	must(ioctl(vcpu, KVM_SET_REGS, &state->regs), "KVM_SET_REGS");
	must(ioctl(vcpu, KVM_SET_XSAVE, &state->xsave), "KVM_SET_XSAVE");
	must(ioctl(vcpu, KVM_SET_XCRS, &state->xcrs), "KVM_SET_XCRS");
	if (ioctl(vcpu, KVM_SET_MSRS, &state->msrs) != (int)state->msrs.head.nmsrs)
		fail("KVM_SET_MSRS");
	must(ioctl(vcpu, KVM_SET_VCPU_EVENTS, &state->events), "KVM_SET_VCPU_EVENTS");
	must(ioctl(vcpu, KVM_SET_MP_STATE, &state->mp), "KVM_SET_MP_STATE");
	must(ioctl(vcpu, KVM_SET_DEBUGREGS, &state->debugregs), "KVM_SET_DEBUGREGS");
}

/* Another VM with the same memory, all of it mapped, which then has the vCPU. */
static void move(void)
{
	uint8_t hidden_pages[sizeof denied];

	drop_vm();
	make_vm();
	memcpy(hidden_pages, denied, sizeof denied);
	for (unsigned page = 0; page < sizeof denied; page++)
		if (hidden_pages[page])
			allow(page * PAGE, PROT_READ | PROT_WRITE);
	start_at(WARM_UP, 2, 0);
	while (ioctl(vcpu, KVM_RUN, 0) < 0 || run->exit_reason != KVM_EXIT_IO)
		if (errno != EINTR && errno != EAGAIN)
			fail("KVM_RUN");
	for (unsigned page = 0; page < sizeof denied; page++)
		if (hidden_pages[page])
			allow(page * PAGE, PROT_NONE);
}

/* As a VMM that saves a vCPU and restores it. What sends events waits. */
static void save_and_restore(enum carried carried)
{
	static struct state state;

	pthread_mutex_lock(&vmm);
	if (carried == EVENTS) {
		must(ioctl(vcpu, KVM_GET_VCPU_EVENTS, &state.events), "KVM_GET_VCPU_EVENTS");
		must(ioctl(vcpu, KVM_SET_VCPU_EVENTS, &state.events), "KVM_SET_VCPU_EVENTS");
	} else {
		save(&state);
		if (carried == INTO_ANOTHER)
			move();
		restore(&state);
	}
	pthread_mutex_unlock(&vmm);
}
