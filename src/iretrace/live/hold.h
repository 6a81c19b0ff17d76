/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A sender that is held up inside KVM: between the bit that it sets in the local APIC of a halted vCPU, and the request
 * that goes with it.
 *
 * There is one processor, so the vCPU has to get it while the sender is in between. For such guests the kernel is made to
 * preempt itself anywhere (preempt=full), and the sender's thread is of a class that gives way to any other. A kprobe at the function
 * that comes behind the bit takes stack traces, which needs time; meanwhile a timer signals the thread of the vCPU. As
 * for any signal that comes back to userspace, and calls KVM_RUN again: the bit is there, the request is not. Nothing of
 * KVM is changed but how long a function takes.
 *
 * Or before the bit, when the local APIC has been found enabled: there a vCPU that has come to where it gets an INIT sleeps
 * until the sender is in between, and goes on.
 *
 * The sender of an INIT calls no function between its bit and its request; a probe at the instruction between them
 * (kprobes.py finds it) has it wait there, while a vCPU that has waited right before an HLT executes it.
 *
 * And a vCPU that is held up where KVM lets the guest have the debug registers, so that the signal which brings a debugger
 * comes right then: the sender goes first anyway.
 */
#define HELD_AT "svm_complete_interrupt_delivery"
#define DUE_AT "svm_deliver_interrupt"
#define LENT_AT "dr_interception"
#define INIT_AT "IRETRACE_INIT_BIT" /* in the environment; nothing: it is not known of this kernel */
#define HELD_PROBES 4
#define HELD_FOR (MS / 2) /* from the beginning of the call: until then the signal comes */
#define HELD_VCPU_FOR MS /* from the start of the guest: until then the signal comes */
#define PREEMPT "/sys/kernel/debug/sched/preempt"

static timer_t recall; /* signals the thread of the vCPU */
static int can_hold, can_hold_init, can_hold_vcpu;
static volatile int on_its_way; /* the sender that is to be held up before its bit is about to call */
static char usual[32];		/* how this kernel preempts itself */

static int append_file(const char *name, const char *text)
{
	return put_into(name, O_APPEND, text);
}

/* Several at one place, so that it takes longer. */
static int add_probes(const char *name, const char *where)
{
	char text[128];

	for (int i = 0; i < HELD_PROBES; i++) {
		snprintf(text, sizeof text, "p:iretrace/%s%d %s\n", name, i, where);
		if (!append_file(TRACING "kprobe_events", text))
			return 0;
		snprintf(text, sizeof text, TRACING "events/iretrace/%s%d/trigger", name, i);
		if (!append_file(text, "stacktrace\n"))
			return 0;
	}
	return 1;
}

/* "none (voluntary) full": the one in use. */
static int find_usual(void)
{
	char text[128];
	int file = open(PREEMPT, O_RDONLY);
	ssize_t length = file < 0 ? 0 : read(file, text, sizeof text - 1);

	if (file >= 0)
		close(file);
	text[length > 0 ? length : 0] = 0;
	char *begin = strchr(text, '(');
	return begin && sscanf(begin, "(%31[a-z]", usual) == 1;
}

/* Whether this kernel can do it. On a host it is not tried: other guests would wait, too. */
static void find_hold(pid_t vcpu_thread_number)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1 };

	event._sigev_un._tid = vcpu_thread_number;
	if (!is_init)
		return;
	mount("debug", "/sys/kernel/debug", "debugfs", 0, NULL);
	if (!find_usual() || !write_file(PREEMPT, "full") || !write_file(PREEMPT, usual))
		return;
	can_hold = add_probes("held", HELD_AT) && add_probes("due", DUE_AT) && !timer_create(CLOCK_MONOTONIC, &event, &recall);
	can_hold_init = can_hold && getenv(INIT_AT) && add_probes("init", getenv(INIT_AT));
	can_hold_vcpu = add_probes("lent", LENT_AT);
}

static void enable_probes(const char *name, const char *on)
{
	char file[128];

	for (int i = 0; i < HELD_PROBES; i++) {
		snprintf(file, sizeof file, TRACING "events/iretrace/%s%d/enable", name, i);
		write_file(file, on);
	}
}

static void wait_asleep(void)
{
	struct wait wait = begin_wait();

	while (!count(&blocking) && !stopped && !has_had_time(&wait, QUIET, TICKS))
		rest(MS / 2);
}

static int is_held_inside(enum held held)
{
	return held == BEHIND_THE_BIT || held == BEFORE_THE_BIT;
}

/* The result of KVM_SIGNAL_MSI. */
static int signal_msi_held(struct kvm_msi *msi, enum held held)
{
	struct itimerspec soon = { .it_value.tv_nsec = 1 + random_number() % HELD_FOR };
	struct sched_param gives_way = { 0 };
	int is_init_bit = msi->data == MSI_INIT;
	const char *probes = is_init_bit ? "init" : held == BEHIND_THE_BIT ? "held" : "due";

	enable_probes(probes, "1");
	on_its_way = 1;
	sched_setscheduler(0, SCHED_IDLE, &gives_way);
	if (held == BEHIND_THE_BIT && !is_init_bit)
		timer_settime(recall, 0, &soon, NULL);
	int result = ioctl(vm, KVM_SIGNAL_MSI, msi);
	go_first();
	enable_probes(probes, "0");
	return result;
}

static int has_one_due(void)
{
	for (unsigned i = 0; i < guest->arrivals; i++)
		if (guest->arrival[i].held == BEFORE_THE_BIT)
			return can_hold;
	return 0;
}

/* Its sender is held up behind its bit, while the vCPU is let go at the place. */
static int comes_held(unsigned i)
{
	return guest->arrival[i].held == BEHIND_THE_BIT && guest->arrival[i].cut && can_hold_init;
}

static void wait_for_the_sender(void)
{
	uint64_t limit = now() + START_LIMIT;

	while (!on_its_way && now() < limit)
		rest(MS / 20);
	rest(1 + random_number() % HELD_FOR);
}

/* The vCPU is at a place where something is sent to it. */
static void wait_for_one_due(void)
{
	if (has_one_due())
		wait_for_the_sender();
}

/* Whether the vCPU is to be held up when the guest accesses a debug register. */
static int holds_vcpu(void)
{
	for (unsigned i = 0; i < guest->arrivals; i++)
		if (guest->arrival[i].held && guest->arrival[i].kind == GUEST_DEBUG)
			return can_hold_vcpu;
	return 0;
}

static int holds_sender(void)
{
	for (unsigned i = 0; i < guest->arrivals; i++)
		if (is_held_inside(guest->arrival[i].held) && guest->arrival[i].kind != GUEST_DEBUG)
			return can_hold;
	return 0;
}

/* Other guests run on a kernel that preempts itself as it was built to. */
static void set_preemption(void)
{
	static int full;

	if (holds_sender() == full)
		return;
	full = !full;
	must(write_file(PREEMPT, full ? "full" : usual) ? 0 : -1, PREEMPT);
}
