/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Time and chance, and how far the guest is. */
static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000 * MS + time.tv_nsec;
}

static uint64_t random_number(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* The first numbers of seeds alike are alike in their low bits. */
static void seed_random(unsigned repetition)
{
	random_state = ((uint64_t)guest->seed << 32 | repetition << 8 | 0x5b) * 0x9e3779b97f4a7c15ull;
	for (unsigned i = 0; i < 16; i++)
		random_number();
}

/* 0 to 4 ms, every order of magnitude as likely as the next. */
static uint64_t random_delay(void)
{
	return random_number() % (1ull << (7 + random_number() % 16));
}

static void rest(uint64_t nanoseconds)
{
	struct timespec time = { 0, nanoseconds };

	nanosleep(&time, NULL);
}

/*
 * Sleep, so that on a single processor a timer interrupts the guest. This thread then goes first (go_first), and what it
 * sends arrives where the guest was interrupted.
 */
static void sleep_until(uint64_t due)
{
	struct timespec time = { due / (1000 * MS), due % (1000 * MS) };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

static void go_first(void)
{
	struct sched_param first = { .sched_priority = 10 };

	prctl(PR_SET_TIMERSLACK, 1);
	sched_setscheduler(0, SCHED_FIFO, &first); /* refused to a user: then it goes first a little later */
}

/* How far it is. ---------------------------------------------------------------------------------------------------- */

struct counter {
	const char *name;
	off_t at; /* -1: this kernel does not have it */
};

static int stats;
static struct counter ticks = { .name = "irq_exits" }, blocking = { .name = "blocking" };

static void find_counter(struct counter *counter)
{
	struct kvm_stats_header head;
	size_t size;
	union {
		struct kvm_stats_desc desc;
		char room[512];
	} at;

	counter->at = -1;
	if (pread(stats, &head, sizeof head, 0) != sizeof head)
		return;
	size = sizeof at.desc + head.name_size;
	for (unsigned i = 0; i < head.num_desc && size < sizeof at; i++) {
		if (pread(stats, &at, size, head.desc_offset + i * size) != (ssize_t)size)
			return;
		if (!strcmp(at.room + sizeof at.desc, counter->name))
			counter->at = head.data_offset + at.desc.offset;
	}
}

static uint64_t count(const struct counter *counter)
{
	uint64_t value = 0;

	if (counter->at >= 0 && pread(stats, &value, sizeof value, counter->at) != sizeof value)
		return 0;
	return value;
}

struct wait {
	uint64_t began, ticks;
};

static struct wait begin_wait(void)
{
	return (struct wait){ now(), count(&ticks) };
}

/*
 * Whether the guest has had time: it was interrupted by so many ticks, or it sleeps. The clock alone does not tell, for
 * the machine that runs this may be busy.
 */
static int has_had_time(const struct wait *wait, uint64_t least, unsigned needed)
{
	uint64_t passed = now() - wait->began;

	if (passed > QUIET_LIMIT)
		return 1;
	return passed > least && (count(&ticks) >= wait->ticks + needed || count(&blocking) || ticks.at < 0);
}

static void wait_quiet(void)
{
	struct wait wait = begin_wait();

	while (!stopped && !has_had_time(&wait, QUIET, TICKS))
		rest(MS);
}
