// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The first and only program inside the virtual machine of `iretrace run`, or a helper process on a host with kvm_amd.
 * It loads KVM, reads guests from a file (layout: guests.py), runs each of them again and again, and prints a line for
 * each run. It judges nothing: what a line means is decided by observed.py.
 *
 * Usage: harness FILE. As process 1 it reads /guests, loads /modules/0.ko, 1.ko, ..., prints to port 0xe9, and powers
 * off at the end; else it prints to standard output.
 *
 * One file for the compiler, in parts that follow each other: guest.h (what is run), clock.h, vm.h, trace.h, events.h (with hold.h
 * and state.h), cuts.h (placed events), outcome.h (the line of a run).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

/* Output and errors. ------------------------------------------------------------------------------------------------ */

static void put(const char *format, ...)
{
	static char line[16384];
	va_list arguments;

	va_start(arguments, format);
	int length = vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	if (length >= (int)sizeof line)
		length = sizeof line - 1;
	if (at_port) {
		for (int i = 0; i < length; i++)
			outb(line[i], 0xe9);
	} else {
		fwrite(line, 1, length, stdout);
		fflush(stdout);
	}
}

static void leave(int status)
{
	if (is_init)
		reboot(RB_POWER_OFF);
	exit(status);
}

static void fail(const char *what)
{
	put("fatal %s: %s\n", what, strerror(errno));
	leave(1);
}

static void must(int result, const char *what)
{
	if (result < 0)
		fail(what);
}

#include "clock.h"
#include "vm.h"
#include "trace.h"
#include "events.h"
#include "cuts.h"

/* The thread that calls KVM_RUN, and the one that sends. ------------------------------------------------------------ */

static void run_guest(void)
{
	for (;;) {
		if (!stop)
			run->immediate_exit = 0;
		act();
		int result = ioctl(vcpu, KVM_RUN, 0);
		int debugged = result == 0 && run->exit_reason == KVM_EXIT_DEBUG && attached;
		if (debugged)
			stopped_by_debugger();
		if (debugged || (result < 0 && (errno == EINTR || errno == EAGAIN))) {
			if (stop)
				return;
			continue;
		}
		if (result < 0 && errno == EFAULT && cross_cut())
			continue;
		if (result < 0)
			refused = errno;
		else
			exited = 1;
		return;
	}
}

/*
 * The one thread that calls KVM_RUN. A vCPU that changes its thread waits for a grace period of RCU, and whatever is to
 * meet the guest's first instructions would come too early; here only the warm-up waits.
 */
static void *vcpu_loop(void *unused)
{
	(void)unused;
	vcpu_thread_number = syscall(SYS_gettid);
	sem_post(&done);
	for (;;) {
		while (sem_wait(&go))
			;
		run_guest();
		stopped = 1;
		sem_post(&done);
	}
	return NULL;
}

static void on_signal(int number)
{
	(void)number;
}

/* Short waits take the processor away from the guest, so they are not too short. */
static void wait_cut(uint64_t least)
{
	struct wait wait = begin_wait();

	while (!cut_time && !stopped && !has_had_time(&wait, least, 1))
		rest(MS / 2);
}

/* What comes inside an IRETQ comes a while after the cut in front of it. */
static void wait_inside(void)
{
	for (unsigned i = 0; i < guest->arrivals; i++) {
		struct wait wait = begin_wait();
		while (guest->arrival[i].inside && !fired[i] && !stopped && !has_had_time(&wait, CUT_LIMIT, 1))
			rest(MS / 2);
	}
}

/* Something has to come before main's first instruction, so the rest comes later: not while main's stub runs. */
static int placed_at_start(void)
{
	for (unsigned i = 0; i < guest->arrivals; i++)
		if (guest->arrival[i].strict && guest->arrival[i].cut == guest->entry + MAIN_STUB)
			return 1;
	return 0;
}

/* A VMM does one thing after the other, as the test has it. */
static void put_vmm_in_order(unsigned *order, unsigned count)
{
	for (unsigned a = 0; a < count; a++)
		for (unsigned b = a + 1; b < count; b++)
			if (by_vmm(order[a]) && by_vmm(order[b]) && order[a] > order[b]) {
				unsigned kept = order[a];
				order[a] = order[b];
				order[b] = kept;
			}
}

/* Send everything that is not bound to a place, in any order, at any distance; then wait for what is bound to one. */
static void send_all(void)
{
	unsigned order[MAX_ARRIVALS], count = 0;
	int cuts = 0;

	for (unsigned i = 0; i < guest->arrivals; i++) {
		int placed = guest->arrival[i].cut || guest->arrival[i].inside;
		cuts += placed;
		if (guest->arrival[i].held == UNTIL_REST)
			continue;
		if (!placed && !guest->arrival[i].strict && (guest->arrival[i].promised || random_number() & 1))
			order[count++] = i;
	}
	for (unsigned i = count; i > 1; i--) {
		unsigned other = random_number() % i, kept = order[i - 1];
		order[i - 1] = order[other];
		order[other] = kept;
	}
	put_vmm_in_order(order, count);
	if (placed_at_start() && !has_one_due())
		wait_cut(START_LIMIT);
	else if (cuts && random_number() & 1)
		wait_cut(CUT_LIMIT / 4);
	for (unsigned n = 0; n < count; n++) {
		sleep_until(now() + (holds_vcpu() ? random_number() % HELD_VCPU_FOR : random_delay()));
		if (guest->arrival[order[n]].held == BEHIND_THE_BIT && !by_vmm(order[n]))
			wait_asleep();
		if (!fired[order[n]])
			send(order[n], -1);
	}
	if (cuts) {
		wait_cut(CUT_LIMIT);
		wait_inside();
	}
	for (unsigned i = 0; i < guest->arrivals; i++)
		if ((guest->arrival[i].cut || guest->arrival[i].inside) && !guest->arrival[i].strict && !fired[i])
			send(i, -1);
	for (unsigned i = 0; i < guest->arrivals; i++)
		if (guest->arrival[i].held == UNTIL_REST) {
			wait_quiet();
			send(i, -1);
		}
}

#include "outcome.h"

/* A run. ------------------------------------------------------------------------------------------------------------ */

/*
 * Have the guest write to all of its pages, so that later no nested page fault disturbs, but for those that the test
 * calls cold and those at whose first instruction an event is to arrive. 0 if it went well.
 */
static int warm_up(void)
{
	start_at(WARM_UP, 2, 0);
	start_vcpu();
	wait_vcpu();
	if (refused)
		return refused;
	if (run->exit_reason != KVM_EXIT_IO)
		return 1000 + run->exit_reason;
	for (unsigned n = 0; n < 8; n++)
		if (guest->cold >> n & 1)
			must(madvise(memory + MAIN_STACK_TOP - PAGE + 2 * n * PAGE, PAGE, MADV_DONTNEED), "madvise");
	if (comes_at_cold())
		allow_cold(PROT_NONE);
	/* Its content stays, but KVM maps it again only when the guest comes there. */
	if (guest->cold_code) {
		allow(guest->cold_code, PROT_NONE);
		allow(guest->cold_code, PROT_READ | PROT_WRITE);
	}
	for (unsigned i = 0; i < guest->arrivals; i++)
		if (guest->arrival[i].cut)
			allow(guest->arrival[i].cut, PROT_NONE);
	exited = 0;
	return 0;
}

/* Main is a user program; the warm-up was none, for it leaves by an OUT. */
static void enter_user_mode(void)
{
	struct kvm_sregs sregs;

	must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	set_code_and_data(&sregs, guest->cs, guest->ss);
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
}

/* The guest has made its first store, or an event came before it: it is in the log, or has the guest wait for a SIPI. */
static int has_begun(const struct seen *seen)
{
	const struct record *first = (const void *)(memory + LOG);

	return *(volatile uint32_t *)(memory + ARMED) || first->rip || seen->mp.mp_state == KVM_MP_STATE_INIT_RECEIVED;
}

/* An NMI came in 16-bit code behind an INIT, where a guest has nothing to take it with. */
static int came_too_early(void)
{
	return guest->lasting && *(volatile uint16_t *)(memory + IN_FIRMWARE);
}

static void prepare_run(unsigned repetition, unsigned attempt)
{
	seed_random(attempt << 16 | repetition);
	refused = exited = 0;
	cut_time = 0;
	if (marked)
		write_file(TRACING "trace", "");
	marked = 0;
	memset((void *)fired, 0, sizeof fired);
	asked = on_its_way = 0;
	attached = OFF;
	for (unsigned i = 0; i <= MAX_ARRIVALS; i++)
		done_after[i].debugger = -1;
	load_memory();
}

/* 0: not to be counted, try again. */
static int run_once(unsigned repetition, unsigned attempt)
{
	struct seen seen = { 0 };
	int counts = 1;

	prepare_run(repetition, attempt);
	make_vm();
	int warm = warm_up();
	if (warm) {
		put("run %u %u end=cold reason=%d\n", guest->number, repetition, warm);
	} else {
		if (guest->cs & 3)
			enter_user_mode();
		start_at(guest->entry, guest->rflags, guest->rcx);
		if (holds_vcpu())
			enable_probes("lent", "1");
		start_vcpu();
		send_all();
		if (holds_vcpu())
			enable_probes("lent", "0");
		int rounds = settle(&seen);
		counts = !came_too_early();
		if (!counts)
			;
		else if (has_begun(&seen) || exited || refused)
			print_run(repetition, &seen, rounds);
		else
			put("run %u %u end=hangs reason=0\n", guest->number, repetition);
	}
	open_cuts();
	drop_vm();
	return counts;
}

static void run_repetition(unsigned repetition)
{
	for (unsigned attempt = 0; attempt < MAX_ATTEMPTS; attempt++)
		if (run_once(repetition, attempt))
			return;
	put("run %u %u end=early reason=0\n", guest->number, repetition);
}

/* Beginning. -------------------------------------------------------------------------------------------------------- */

static void load_modules(void)
{
	char name[32];

	for (int i = 0;; i++) {
		snprintf(name, sizeof name, "/modules/%d.ko", i);
		int file = open(name, O_RDONLY);
		if (file < 0)
			return;
		if (syscall(SYS_finit_module, file, "", 0) < 0 && errno != EEXIST) {
			put("fatal module %d: %s\n", i, strerror(errno));
			leave(1);
		}
		close(file);
	}
}

static void become_init(void)
{
	is_init = 1;
	mkdir("/dev", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	if (ioperm(0xe9, 1, 1) == 0)
		at_port = 1;
	put("boot\n");
	load_modules();
	find_tracing();
}

static const uint8_t *read_guests(const char *name, size_t *size)
{
	struct stat status;
	int file = open(name, O_RDONLY);

	if (file < 0 || fstat(file, &status) < 0)
		fail(name);
	*size = status.st_size;
	const uint8_t *bytes = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, file, 0);
	if (bytes == MAP_FAILED)
		fail(name);
	return bytes;
}

static size_t guest_size(void)
{
	const uint8_t *at = (const uint8_t *)(guest + 1);

	for (unsigned i = 0; i < guest->chunks; i++)
		at += sizeof(struct chunk) + (((const struct chunk *)at)->size + 3) / 4 * 4;
	return at - (const uint8_t *)guest;
}

static void prepare(void)
{
	struct sigaction action = { .sa_handler = on_signal };

	sigaction(SIGUSR1, &action, NULL);
	sem_init(&go, 0, 0);
	sem_init(&done, 0, 0);
	if (pthread_create(&vcpu_thread, NULL, vcpu_loop, NULL))
		fail("pthread_create");
	wait_vcpu();
	find_hold(vcpu_thread_number);
	go_first();
	must(kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	must(run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	madvise(memory, MEMORY_SIZE, MADV_NOHUGEPAGE);
	reset_page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (reset_page == MAP_FAILED)
		fail("mmap");
}

int main(int count, char **arguments)
{
	const char *name = count > 1 ? arguments[1] : "/guests";
	size_t size, at = 0;

	if (getpid() == 1) {
		become_init();
		name = "/guests";
	}
	const uint8_t *bytes = read_guests(name, &size);
	prepare();
	put("ready\n");
	for (; at < size; at += guest_size()) {
		guest = (const void *)(bytes + at);
		if (guest->magic != MAGIC) {
			errno = EINVAL;
			fail("guests");
		}
		put("begin %u\n", guest->number);
		set_preemption();
		for (unsigned i = 0; i < guest->repeat; i++)
			run_repetition(i);
	}
	put("done\n");
	leave(0);
}
