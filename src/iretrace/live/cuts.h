/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pages that are taken away, so that KVM_RUN comes back right before an instruction, in an IRETQ or in a delivery. */
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
