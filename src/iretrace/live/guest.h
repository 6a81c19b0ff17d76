/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest as guests.py packs it, its memory, and what is going on with the one that runs.
 */
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
enum held { NOT_HELD, BEHIND_THE_BIT, BEFORE_THE_BIT, UNTIL_REST };
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
			    * GUEST_DEBUG, the vCPU is; or it comes when the guest has come to rest */
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
