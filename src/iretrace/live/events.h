/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is sent to the guest, and what the VMM does with the vCPU. */
static unsigned logged(void)
{
	const volatile struct record *record = (const void *)(memory + LOG), *end = (const void *)(memory + LOG_END);
	unsigned count = 0;

	while (record + count < end && record[count].rip)
		count++;
	return count;
}

/* Attach a debugger, or take it away. The vCPU does not run. */
static void set_debugger(unsigned i, enum debugger what, uint64_t target)
{
	struct kvm_guest_debug debug = { 0 };
	struct kvm_regs regs;

	must(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	done_after[i].debugger = what;
	done_after[i].after = logged();
	done_after[i].rip = regs.rip;
	if (what == STEP)
		debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
	if (what == BREAK) {
		debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
		debug.arch.debugreg[0] = target;
		debug.arch.debugreg[7] = 0x401;
	}
	must(ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug), "KVM_SET_GUEST_DEBUG");
	attached = what;
}

static void send(unsigned i, int64_t spins);

static uint8_t denied[MEMORY_SIZE / PAGE];

static void allow(uint64_t page, int protection)
{
	denied[page / PAGE] = protection == PROT_NONE;
	must(mprotect(memory + page, PAGE, protection), "mprotect");
}

#include "hold.h"
#include "state.h"

static int by_vmm(unsigned i)
{
	return guest->arrival[i].kind >= GUEST_DEBUG && guest->arrival[i].kind < SMI;
}

/* What was asked of the VMM, in the order of the list. */
static void act(void)
{
	for (unsigned i = 0; i < guest->arrivals; i++) {
		if (!(asked >> i & 1))
			continue;
		asked &= ~(1u << i);
		if (guest->arrival[i].kind == GUEST_DEBUG)
			set_debugger(i, guest->arrival[i].debugger, guest->arrival[i].target);
		else if (guest->arrival[i].kind == KVM_NMI_CALL)
			must(ioctl(vcpu, KVM_NMI), "KVM_NMI");
		else
			save_and_restore(attached ? EVENTS : guest->carried);
	}
}

/* KVM_RUN came back for the debugger. It goes when the instruction is reached that it waits for. */
static void stopped_by_debugger(void)
{
	struct kvm_regs regs;

	if (attached == BREAK) {
		set_debugger(MAX_ARRIVALS, OFF, 0);
		return;
	}
	must(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	for (unsigned i = 0; i < guest->arrivals; i++)
		if (guest->arrival[i].strict && !guest->arrival[i].cut && guest->arrival[i].target == regs.rip && !fired[i])
			send(i, -regs.rcx);
}

/* Have the VMM act, where the guest is: what comes before it in the list has been done. */
static void ask(unsigned i)
{
	asked |= 1u << i;
	if (pthread_equal(pthread_self(), vcpu_thread)) {
		act();
		return;
	}
	pthread_mutex_lock(&vmm);
	run->immediate_exit = 1;
	pthread_mutex_unlock(&vmm);
	pthread_kill(vcpu_thread, SIGUSR1);
}

static uint32_t message(enum kind kind)
{
	switch (kind) {
	case NMI: return MSI_NMI;
	case SMI: return MSI_SMI;
	case INIT: return MSI_INIT;
	case SIPI: return MSI_SIPI;
	default: return IRQ_VECTOR;
	}
}

/* spins: of the guest until now, -1 if that cannot be known because it runs. */
static void send(unsigned i, int64_t spins)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = message(guest->arrival[i].kind) };
	enum held held = guest->arrival[i].held;

	for (unsigned earlier = 0; earlier < i && by_vmm(i); earlier++)
		if (by_vmm(earlier) && !fired[earlier])
			send(earlier, spins);
	/* The thread that waits for a place, and the one that comes to it, may both be here. */
	if (__atomic_exchange_n(&fired[i], 1, __ATOMIC_SEQ_CST))
		return;
	sent_after[i] = logged();
	sent_at[i] = spins;
	if (spins >= 0)
		mark_trace();
	if (guest->arrival[i].kind == SIGNAL)
		pthread_kill(vcpu_thread, SIGUSR1);
	else if (by_vmm(i))
		ask(i);
	else if (pthread_equal(pthread_self(), vcpu_thread))
		must(ioctl(vm, KVM_SIGNAL_MSI, &msi), "KVM_SIGNAL_MSI");
	else {
		pthread_mutex_lock(&vmm);
		must(is_held_inside(held) && can_hold ? signal_msi_held(&msi, held) : ioctl(vm, KVM_SIGNAL_MSI, &msi), "KVM_SIGNAL_MSI");
		pthread_mutex_unlock(&vmm);
	}
}
