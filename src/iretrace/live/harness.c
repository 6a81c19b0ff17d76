// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The first and only program inside the virtual machine of `iretrace run`, or a helper process on a host with kvm_amd.
 * It loads KVM, reads guests from a file (layout: guests.py), runs each of them again and again, and prints a line for
 * each run. It judges nothing: what a line means is decided by observed.py.
 *
 * Usage: harness FILE. As process 1 it reads /guests, loads /modules/0.ko, 1.ko, ..., prints to port 0xe9, and powers
 * off at the end; else it prints to standard output.
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

/* The guest's memory; layout.py has the same numbers. */
#define MEMORY_SIZE 0x80000
#define PAGE 0x1000
#define PAGE_TABLES 0x1000
#define GDT 0x4000
#define TSS 0x4100
#define IDT 0x5000
#define ARMED 0x6000
#define WARM_UP 0x7000
#define MAIN_STACK_TOP 0x11000
#define LOG 0x40000
#define LOG_END 0x44000
#define VALUES 0x46000
#define LOG_NEXT 0x6008
#define FIRMWARE 0x3a000
#define RESET_PAGE 0xfffff000
#define RESET_VECTOR 0xff0 /* in that page */
#define IN_FIRMWARE 0x6010 /* not 0: the guest is between an INIT and its section for it */
#define MAX_ATTEMPTS 4
#define NOT_CANONICAL 0x800000000000
#define MAIN_STUB 11 /* bytes in front of main's first instruction */
#define CODE_SELECTOR 0x10
#define DATA_SELECTOR 0x18
#define TSS_SELECTOR 0x20

/* SYSCALL: CS 0x10 and SS 0x18; SYSRET: CS 0x3b and SS 0x33; what Linux has in SFMASK. */
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_SYSCALL_MASK 0xc0000084
#define STAR ((uint64_t)0x28 << 48 | (uint64_t)0x10 << 32)
#define SYSCALL_MASK 0x47700

#define MAGIC 0x65637274
#define MAX_ARRIVALS 8
#define SHOWN_RECORDS 48
#define SHOWN_VALUES 64

enum kind { NMI, IRQ, SIGNAL, GUEST_DEBUG, KVM_NMI_CALL, SAVE_RESTORE, SMI = 16, INIT, SIPI };
enum debugger { OFF, STEP, BREAK };
enum held { NOT_HELD, BEHIND_THE_BIT, BEFORE_THE_BIT };
enum carried { EVENTS, EVERYTHING, INTO_ANOTHER };
#define IRQ_VECTOR 0x30
/* The delivery mode of a message, and what goes with it. */
#define MSI_SMI 0x200
#define MSI_NMI 0x400
#define MSI_INIT 0x500
#define MSI_SIPI (0x600 | FIRMWARE >> 12)

#define MS 1000000ull
#define QUIET (8 * MS)
#define QUIET_LIMIT (500 * MS)
#define TICKS 3
#define STOP_LIMIT (3000 * MS)
#define MAX_ROUNDS 12
#define CUT_LIMIT (4 * MS) /* a label that the guest has not reached by then, and with a tick, it does not reach now */
#define START_LIMIT (500 * MS)

#define AT_COLD 1 /* it comes where a cold page of the stack is met, which may be in a delivery */

struct arrival {
	uint32_t kind;
	uint32_t promised;
	uint32_t cut;	 /* page whose first instruction it must precede; 0: any time */
	uint32_t strict; /* comes there or not at all */
	uint32_t inside; /* at or behind the cut: comes when this IRETQ's intercept is handled, or this INT's delivery cut off; or AT_COLD */
	uint32_t debugger; /* what the VMM does with its debugger, for GUEST_DEBUG */
	uint32_t target;   /* where it stops the guest, for BREAK; where it goes, for OFF behind a STEP */
	uint32_t held;	   /* enum held: its sender is held up inside KVM, at a place while the vCPU goes on there; or, for
			    * GUEST_DEBUG, the vCPU is */
};

struct guest {
	uint32_t magic;
	uint32_t number;
	uint32_t repeat;
	uint32_t seed;
	uint32_t entry;
	uint32_t rflags;
	uint32_t rcx;
	uint32_t efer;
	uint32_t cs; /* of main; with RPL 3 it is a user program */
	uint32_t ss;
	uint32_t lstar; /* where SYSCALL leads; 0: it is not used */
	uint32_t svm; /* its CPUID has SVM */
	uint32_t lasting; /* log and marks are where RSM and INIT do not come to: real_mode.py */
	uint32_t ap;	  /* it is no bootstrap processor */
	uint32_t arrivals;
	struct arrival arrival[MAX_ARRIVALS];
	uint32_t cold; /* bit n: page MAIN_STACK_TOP - PAGE + 2 * n * PAGE has never been touched */
	uint32_t cold_code; /* a page of instructions that has never been touched; 0: none */
	uint32_t carried; /* enum carried: of what a VMM saves and restores */
	uint32_t chunks;
};

struct chunk {
	uint32_t address;
	uint32_t size;
};

struct record {
	uint64_t rip;
	uint64_t rflags;
	uint64_t marks; /* of a guest that is not lasting */
	uint32_t vector;
	uint32_t error;
	uint64_t spins; /* counted down from 0 */
	uint64_t values; /* where the next one goes */
	uint8_t lasting_marks[16];
};

#define MARKS_REGISTER 8 /* XMM8; those below are what marks append */
#define XMM(n) (160 + 16 * (n)) /* in the layout of XSAVE */
#define XSTATE_BV 512
#define XSTATE_SSE 2
#define BASE 9
#define TOO_MANY (~0ull) /* marks: more digits than any number that is known to be whole */

static int kvm, vm, vcpu, run_size;
static struct kvm_run *run;
static uint8_t *memory, *reset_page;
static const struct guest *guest;
static pthread_t vcpu_thread;
static pid_t vcpu_thread_number;
static volatile int stop, stopped;
static volatile int refused; /* errno of KVM_RUN, 0 if it went well */
static volatile int exited;  /* KVM_RUN came back by itself */
static volatile int fired[MAX_ARRIVALS];
static volatile unsigned sent_after[MAX_ARRIVALS]; /* how many deliveries the guest had logged */
static volatile uint64_t cut_time;
static volatile int64_t sent_at[MAX_ARRIVALS]; /* spins until then, -1: not known */
static volatile unsigned asked;	  /* what the thread that calls KVM_RUN is to do before it does so again, as bits */
static enum debugger attached;
static struct {
	int debugger; /* -1: nothing was done */
	unsigned after;
	uint64_t rip;
} done_after[MAX_ARRIVALS + 1]; /* when the debugger came or went; the last one: when it went by itself */
static int cold_hidden; /* the cold pages of the stack are away */
static uint64_t hidden; /* a page of the stack that the guest cannot have now, 0: none */
static int at_port, is_init;
static sem_t go, done;
static pthread_mutex_t vmm = PTHREAD_MUTEX_INITIALIZER; /* a VM is not taken away while something is sent to it */
static uint64_t random_state;

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

/* Time and chance. -------------------------------------------------------------------------------------------------- */

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

/* The virtual machine. ---------------------------------------------------------------------------------------------- */

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

/* The exits of KVM behind the last event that was sent at a place. ---------------------------------------------------- */

#define TRACING "/sys/kernel/tracing/"
#define SHOWN_EXITS 8
#define MARKER "iretrace: sent"

static int marker = -1; /* -1: this kernel cannot tell */
static volatile int marked;

static int put_into(const char *name, int how, const char *text)
{
	int file = open(name, O_WRONLY | how);
	int done = file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text);

	if (file >= 0)
		close(file);
	return done;
}

static int write_file(const char *name, const char *text)
{
	return put_into(name, O_TRUNC, text);
}

static void find_tracing(void)
{
	mkdir("/sys", 0755);
	mount("sys", "/sys", "sysfs", 0, NULL);
	mount("trace", TRACING, "tracefs", 0, NULL);
	if (write_file(TRACING "events/kvm/kvm_exit/enable", "1"))
		marker = open(TRACING "trace_marker", O_WRONLY);
}

static void mark_trace(void)
{
	if (marker >= 0)
		marked = write(marker, MARKER "\n", strlen(MARKER) + 1) > 0;
}

/* "reason@rip;" of the first exits behind the last mark. */
static void print_exits(void)
{
	static char line[1024];
	static char told[SHOWN_EXITS][64];
	unsigned count = 0, long_ago = 1;
	FILE *trace = marked ? fopen(TRACING "trace", "r") : NULL;

	while (trace && fgets(line, sizeof line, trace)) {
		char *reason = strstr(line, "kvm_exit: "), *rip;
		if (strstr(line, MARKER))
			count = long_ago = 0;
		if (long_ago || count == SHOWN_EXITS || !reason || !(reason = strstr(reason, "reason ")))
			continue;
		reason += strlen("reason ");
		if ((rip = strstr(reason, " rip 0x")))
			snprintf(told[count++], sizeof told[0], "%.*s@%.16s", (int)strcspn(reason, " "), reason,
				 rip + strlen(" rip 0x"));
	}
	if (trace)
		fclose(trace);
	put(" exits=");
	for (unsigned i = 0; i < count; i++)
		put("%.*s;", (int)strcspn(told[i], " "), told[i]);
}

/* Events. ----------------------------------------------------------------------------------------------------------- */

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
		must(held && can_hold ? signal_msi_held(&msi, held) : ioctl(vm, KVM_SIGNAL_MSI, &msi), "KVM_SIGNAL_MSI");
		pthread_mutex_unlock(&vmm);
	}
}

/* Where an IRETQ reads, or what an INT raises writes. */
static uint64_t frame_at(uint32_t instruction, uint64_t rsp)
{
	return memory[instruction] == 0xcc || memory[instruction] == 0xcd ? rsp - 8 : rsp;
}

/* An IRET was intercepted, and then could not read its frame; or what an INT raises could not write it. */
static int cross_stack(const struct kvm_regs *regs)
{
	allow(hidden, PROT_READ | PROT_WRITE);
	hidden = 0;
	for (unsigned i = 0; i < guest->arrivals; i++)
		if (guest->arrival[i].inside == regs->rip && !fired[i])
			send(i, -regs->rcx);
	return 1;
}

static int comes_at_cold(void)
{
	for (unsigned i = 0; i < guest->arrivals; i++)
		if (guest->arrival[i].inside == AT_COLD)
			return 1;
	return 0;
}

static void allow_cold(int protection)
{
	cold_hidden = protection == PROT_NONE;
	for (unsigned n = 0; n < 8; n++)
		if (guest->cold >> n & 1)
			allow(MAIN_STACK_TOP - PAGE + 2 * n * PAGE, protection);
}

/* A cold page of the stack was met: an event that was being delivered there is to be delivered again. */
static int cross_cold(const struct kvm_regs *regs)
{
	allow_cold(PROT_READ | PROT_WRITE);
	for (unsigned i = 0; i < guest->arrivals; i++)
		if (guest->arrival[i].inside == AT_COLD && !fired[i])
			send(i, -regs->rcx);
	cut_time = now();
	return 1;
}

/*
 * The vCPU was about to fetch from a page that it cannot have: send what must come here, and let it go on. A guest that
 * comes to the page at another place has jumped over the first instruction; then nothing is sent.
 */
static int cross_cut(void)
{
	struct kvm_regs regs;
	int crossed = 0;

	must(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	if (hidden)
		return cross_stack(&regs);
	if (cold_hidden && !(regs.rip < MEMORY_SIZE && denied[regs.rip / PAGE]))
		return cross_cold(&regs);
	for (unsigned i = 0; i < guest->arrivals; i++) {
		uint32_t cut = guest->arrival[i].cut;
		if (!cut || cut != (regs.rip & ~(PAGE - 1ull)))
			continue;
		allow(cut, PROT_READ | PROT_WRITE);
		if (regs.rip == cut && !fired[i]) {
			wait_for_one_due();
			cut_time = now();
			if (comes_held(i))
				wait_for_the_sender();
			else if (!guest->arrival[i].inside)
				send(i, -regs.rcx);
			else if (regs.rsp < MEMORY_SIZE)
				allow(hidden = frame_at(guest->arrival[i].inside, regs.rsp) & ~(PAGE - 1ull), PROT_NONE);
		}
		crossed = 1;
	}
	cut_time = now();
	return crossed;
}

static void open_cuts(void)
{
	if (hidden)
		allow(hidden, PROT_READ | PROT_WRITE);
	hidden = 0;
	if (cold_hidden)
		allow_cold(PROT_READ | PROT_WRITE);
	for (unsigned i = 0; i < guest->arrivals; i++)
		if (guest->arrival[i].cut)
			allow(guest->arrival[i].cut, PROT_READ | PROT_WRITE);
}

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
}

/* What came out. ---------------------------------------------------------------------------------------------------- */

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
