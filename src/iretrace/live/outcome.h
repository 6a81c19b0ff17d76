/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What came out of a run: when it is over, and its line. */
struct seen {
	uint64_t marks; /* as a number of base 9 */
	uint64_t next;	/* where the next record goes */
	struct kvm_regs regs;
	struct kvm_mp_state mp;
	struct kvm_vcpu_events events;
};

/* The first mark is the highest of the bytes that are not 0. */
static uint64_t number_of(const uint8_t *bytes)
{
	uint64_t number = 0;

	if (bytes[15])
		return TOO_MANY;
	for (int i = 14; i >= 0; i--)
		number = number * BASE + bytes[i];
	return number;
}

static uint64_t lasting_marks(void)
{
	struct kvm_xsave xsave;

	must(ioctl(vcpu, KVM_GET_XSAVE, &xsave), "KVM_GET_XSAVE");
	return number_of((const uint8_t *)&xsave + XMM(MARKS_REGISTER));
}

/* `jmp .` or `loop .` */
static int is_spin(uint64_t rip)
{
	return rip < MEMORY_SIZE - 1 && !denied[rip / PAGE] && (memory[rip] == 0xeb || memory[rip] == 0xe2) &&
	       memory[rip + 1] == 0xfe;
}

/*
 * KVM_GET_MP_STATE has KVM take an INIT that it has forgotten, and KVM_GET_VCPU_EVENTS has it look for events again. So where
 * that may show, a guest that spins, and was not asleep, is not asked for them: with INIT, and where SYSCALL ends a step.
 */
static void look(struct seen *seen, int asleep)
{
	memset(seen, 0, sizeof *seen);
	must(ioctl(vcpu, KVM_GET_REGS, &seen->regs), "KVM_GET_REGS");
	if (!(guest->lasting || guest->lstar) || asleep || !is_spin(seen->regs.rip)) {
		must(ioctl(vcpu, KVM_GET_MP_STATE, &seen->mp), "KVM_GET_MP_STATE");
		must(ioctl(vcpu, KVM_GET_VCPU_EVENTS, &seen->events), "KVM_GET_VCPU_EVENTS");
	}
	seen->marks = guest->lasting ? lasting_marks() : seen->regs.r15;
	seen->next = guest->lasting ? *(volatile uint64_t *)(memory + LOG_NEXT) : seen->regs.r14;
}

static void start_vcpu(void)
{
	stop = stopped = 0;
	sem_post(&go);
}

static void wait_vcpu(void)
{
	while (sem_wait(&done))
		;
}

static void stop_vcpu(void)
{
	uint64_t limit = now() + STOP_LIMIT;

	stop = 1;
	pthread_mutex_lock(&vmm);
	run->immediate_exit = 1;
	pthread_mutex_unlock(&vmm);
	while (!stopped) {
		if (now() > limit) {
			put("fatal KVM_RUN does not come back\n");
			leave(1);
		}
		pthread_kill(vcpu_thread, SIGUSR1);
		rest(MS / 20);
	}
	wait_vcpu();
}

static int same(const struct seen *a, const struct seen *b)
{
	return !memcmp(&a->events, &b->events, sizeof a->events) && a->next == b->next && a->marks == b->marks &&
	       a->mp.mp_state == b->mp.mp_state;
}

/* The guest is halted, or at `jmp .` or `loop .`, and nothing waits: if it stands still, it is not for lack of time. */
static int at_rest(const struct seen *seen)
{
	if (seen->events.nmi.pending || seen->events.nmi.injected || seen->events.interrupt.injected || seen->events.smi.pending)
		return 0;
	return seen->mp.mp_state == KVM_MP_STATE_HALTED || seen->mp.mp_state == KVM_MP_STATE_INIT_RECEIVED ||
	       is_spin(seen->regs.rip);
}

/* Run until looks in a row see the same: two if the guest is at rest, else more. Returns the number of looks. */
static int settle(struct seen *seen)
{
	struct seen before;
	int rounds = 0, equal = 0;

	for (;;) {
		wait_quiet();
		int asleep = blocking.at < 0 || count(&blocking);
		stop_vcpu();
		before = *seen;
		look(seen, asleep);
		equal = rounds++ && same(&before, seen) ? equal + 1 : 0;
		if (exited || refused || equal == (at_rest(seen) ? 1 : 4) || rounds == MAX_ROUNDS)
			return rounds;
		start_vcpu();
	}
}

static void print_log(const struct seen *seen)
{
	const struct record *record = (const void *)(memory + LOG), *end = (const void *)(memory + LOG_END);
	const struct record *last = (const void *)(memory + (seen->next & (MEMORY_SIZE - 1)));
	int wrapped = end[-1].rip != 0;

	put(" records=%d log=", wrapped ? -1 : (int)(last - record));
	for (int i = 0; i < SHOWN_RECORDS && record < end && record->rip; i++, record++)
		put("%x:%llx:%llx:%x:%llx:%llx:%x;", record->vector, (unsigned long long)record->rip,
		    (unsigned long long)record->rflags, record->error, (unsigned long long)(guest->lasting ? number_of(record->lasting_marks) : record->marks),
		    -(unsigned long long)record->spins, (unsigned)(record->values - VALUES) / 8);
	put("\n");
}

/* What `show` has shown: how often, and the first values. */
static void print_values(const struct seen *seen)
{
	const uint64_t *value = (const void *)(memory + VALUES);
	unsigned count = seen->regs.rdi < VALUES ? 0 : (seen->regs.rdi - VALUES) / 8; /* 0: behind an INIT */

	put(" shown=%u values=", count);
	for (unsigned i = 0; i < SHOWN_VALUES && (i < count || value[i]); i++)
		put("%llx,", (unsigned long long)value[i]);
}

static void print_run(unsigned repetition, const struct seen *seen, int rounds)
{
	const char *end = refused ? "refused" : exited ? "exit" : "runs";
	unsigned sent = 0;

	for (unsigned i = 0; i < guest->arrivals; i++)
		sent |= fired[i] << i;
	put("run %u %u end=%s reason=%u errno=%d rip=%llx rflags=%llx marks=%llx mp=%u rounds=%d sent=%x",
	    guest->number, repetition, end, run->exit_reason, refused, (unsigned long long)seen->regs.rip,
	    (unsigned long long)seen->regs.rflags, (unsigned long long)seen->marks, seen->mp.mp_state, rounds, sent);
	put(" after=");
	for (unsigned i = 0; i < guest->arrivals; i++)
		put("%d,", fired[i] ? (int)sent_after[i] : -1);
	put(" at=");
	for (unsigned i = 0; i < guest->arrivals; i++)
		put("%lld,", fired[i] ? (long long)sent_at[i] : -1ll);
	put(" debugger=");
	for (unsigned i = 0; i <= MAX_ARRIVALS; i++)
		if (done_after[i].debugger >= 0)
			put("%d:%u:%llx;", done_after[i].debugger, done_after[i].after,
			    (unsigned long long)done_after[i].rip);
	print_exits();
	print_values(seen);
	put(" nmi=%u%u%u irq=%u exception=%u", seen->events.nmi.pending, seen->events.nmi.injected,
	    seen->events.nmi.masked, seen->events.interrupt.injected, seen->events.exception.injected);
	print_log(seen);
}
