// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * @TEST@: a guest that KVM's event injection on AMD is judged by, made by `iretrace reproduce`.
 *
@ABOUT@
 *
 * Runs the guest @ROUNDS@ times, each time with the events at random moments, and looks at the marks that it leaves. The
 * processor alone can only leave those in allowed[]. KTAP on standard output; exit status 0 passed, 1 failed, 4 skipped.
 * That it passes does not say that there is no defect: the moment may not have been met.
 *
 * Build: gcc -O2 -pthread -o @TEST@ @TEST@.c       Run: ./@TEST@ (needs /dev/kvm of an AMD host)
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define KSFT_PASS 0
#define KSFT_FAIL 1
#define KSFT_SKIP 4

#define ROUNDS @ROUNDS@
#define MEMORY_SIZE 0x80000
#define PAGE_TABLES 0x1000
#define GDT 0x4000
#define TSS 0x4100
#define IDT 0x5000
#define ARMED 0x6000 /* main's first instruction stores here */
#define MAIN_STACK_TOP 0x11000
#define LOG 0x40000
#define LOG_END 0x44000
#define CODE_SELECTOR 0x10
#define DATA_SELECTOR 0x18
#define TSS_SELECTOR 0x20
#define MARK_BASE 9
#define MSI_NMI 0x400
#define IRQ_VECTOR 0x30
#define REST 20000000 /* ns that the guest is given after the last event */

enum kind { NMI, IRQ, SIGNAL };

static const enum kind events[] = { @EVENTS@ };
static const char *const marks[] = { @MARKS@ };
static const char *const allowed[] = { @ALLOWED@ };

/* The guest: page tables, GDT, TSS, IDT and code. Each delivery through the IDT is logged at LOG. */
@CHUNKS@
static const struct {
	uint32_t address, size;
	const uint8_t *data;
} chunks[] = {
@CHUNK_LIST@};

struct record {
	uint64_t rip, rflags, marks;
	uint32_t vector, error;
};

static int kvm, vm, vcpu;
static struct kvm_run *run;
static uint8_t *memory;
static pthread_t vcpu_thread;
static volatile int stop;

static void skip(const char *why)
{
	printf("1..0 # SKIP %s\n", why);
	exit(KSFT_SKIP);
}

static void must(long result, const char *what)
{
	if (result < 0) {
		printf("Bail out! %s: %s\n", what, strerror(errno));
		exit(KSFT_FAIL);
	}
}

static void on_signal(int number)
{
	(void)number;
}

static void rest(long nanoseconds)
{
	struct timespec time = { 0, nanoseconds };

	nanosleep(&time, NULL);
}

static void set_state(void)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entry[256];
	} cpuid = { .head = { .nent = 256 } };
	struct kvm_regs regs = {
		.rip = @ENTRY@, .rflags = @RFLAGS@, .rsp = MAIN_STACK_TOP, .rdi = DATA_SELECTOR, .r14 = LOG,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = DATA_SELECTOR, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1,
	};
	struct kvm_lapic_state lapic;
	struct kvm_sregs sregs;

	must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	for (unsigned int i = 0; i < cpuid.head.nent; i++)
		if (cpuid.entry[i].function == 0x80000001)
			cpuid.entry[i].ecx &= ~4u; /* no SVM: the guest is no hypervisor */
	must(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
	must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cs = (struct kvm_segment){
		.limit = 0xffffffff, .selector = CODE_SELECTOR, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1,
	};
	sregs.tr = (struct kvm_segment){
		.base = TSS, .limit = 0x67, .selector = TSS_SELECTOR, .type = 11, .present = 1,
	};
	sregs.gdt = (struct kvm_dtable){ .base = GDT, .limit = 0x2f };
	sregs.idt = (struct kvm_dtable){ .base = IDT, .limit = 0xfff };
	sregs.cr0 = 0x80000033;
	sregs.cr3 = PAGE_TABLES;
	sregs.cr4 = 0x220;
	sregs.efer = 0x500;
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	must(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	must(ioctl(vcpu, KVM_GET_LAPIC, &lapic), "KVM_GET_LAPIC");
	*(uint32_t *)(lapic.regs + 0xf0) = 0x1ff;
	must(ioctl(vcpu, KVM_SET_LAPIC, &lapic), "KVM_SET_LAPIC");
}

static void *run_vcpu(void *unused)
{
	(void)unused;
	while (!stop && (ioctl(vcpu, KVM_RUN, 0) == 0 || errno == EINTR || errno == EAGAIN))
		if (run->exit_reason != KVM_EXIT_INTR && run->exit_reason != KVM_EXIT_UNKNOWN)
			break;
	return NULL;
}

static void send_event(enum kind kind)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = kind == NMI ? MSI_NMI : IRQ_VECTOR };

	if (kind == SIGNAL)
		pthread_kill(vcpu_thread, SIGUSR1);
	else
		must(ioctl(vm, KVM_SIGNAL_MSI, &msi), "KVM_SIGNAL_MSI");
}

/* The guest's marks in order, as a word: each is a digit of r15. */
static void read_marks(char *word, size_t size)
{
	struct kvm_regs regs;
	uint64_t value;
	int digits[32], count = 0;

	must(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	for (value = regs.r15; value && count < 32; value /= MARK_BASE)
		digits[count++] = value % MARK_BASE;
	word[0] = 0;
	while (count-- > 0) {
		size_t length = strlen(word);
		const char *name = digits[count] ? marks[digits[count] - 1] : "?";

		snprintf(word + length, size - length, "%s%s", length ? " " : "", name);
	}
}

static void run_once(char *word, size_t size)
{
	struct kvm_userspace_memory_region region = {
		.memory_size = MEMORY_SIZE, .userspace_addr = (uintptr_t)memory,
	};
	int mapped;

	memset(memory, 0, MEMORY_SIZE);
	for (size_t i = 0; i < sizeof(chunks) / sizeof(*chunks); i++)
		memcpy(memory + chunks[i].address, chunks[i].data, chunks[i].size);
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	must(vm, "KVM_CREATE_VM");
	must(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	must(vcpu, "KVM_CREATE_VCPU");
	mapped = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	must(mapped, "KVM_GET_VCPU_MMAP_SIZE");
	run = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	must(run == MAP_FAILED ? -1 : 0, "mmap");
	set_state();
	stop = 0;
	run->immediate_exit = 0;
	pthread_create(&vcpu_thread, NULL, run_vcpu, NULL);
	for (int i = 0; i < 1000 && !*(volatile uint32_t *)(memory + ARMED); i++)
		rest(100000);
	for (size_t i = 0; i < sizeof(events) / sizeof(*events); i++) {
		rest(rand() % (1 << (7 + rand() % 14)));
		send_event(events[i]);
	}
	rest(REST);
	stop = 1;
	run->immediate_exit = 1;
	pthread_kill(vcpu_thread, SIGUSR1);
	pthread_join(vcpu_thread, NULL);
	read_marks(word, size);
	munmap(run, mapped);
	close(vcpu);
	close(vm);
}

static int is_allowed(const char *word)
{
	for (size_t i = 0; i < sizeof(allowed) / sizeof(*allowed); i++)
		if (!strcmp(word, allowed[i]))
			return 1;
	return 0;
}

static void print_deliveries(void)
{
	const struct record *record = (const void *)(memory + LOG), *end = (const void *)(memory + LOG_END);

	for (; record < end && record->rip; record++)
		printf("# delivered vector %#x, saved RIP %#llx, RFLAGS %#llx\n", record->vector,
		       (unsigned long long)record->rip, (unsigned long long)record->rflags);
}

int main(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	char word[512];

	setbuf(stdout, NULL);
	puts("TAP version 13");
	kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0)
		skip("/dev/kvm cannot be opened");
	if (access("/sys/module/kvm_amd", F_OK))
		skip("kvm_amd is not loaded");
	memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(memory == MAP_FAILED ? -1 : 0, "mmap");
	sigaction(SIGUSR1, &action, NULL);
	puts("1..1");
	for (int round = 0; round < ROUNDS; round++) {
		run_once(word, sizeof(word));
		if (!is_allowed(word)) {
			printf("# round %d: the guest leaves the marks '%s', which the processor cannot\n", round, word);
			print_deliveries();
			puts("not ok 1 @TEST@");
			return KSFT_FAIL;
		}
	}
	puts("ok 1 @TEST@");
	return KSFT_PASS;
}
