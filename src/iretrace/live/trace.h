/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The exits of KVM behind the last event that was sent at a place, from the kernel's own trace. */
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
