/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The firmware of `iretrace run --on qemu-machine`: from reset into the guest that lies in memory, with the state that
 * harness.c gives to a vCPU. One guest for each reset: a second reset without a new guest was a shutdown. INIT leads here,
 * too, and on to the guest's own code.
 *
 * MAIL: 1 = start the guest (written from outside), 2 = started, 3 = the guest has shut down. Behind it, 8 bytes each: RFLAGS,
 * entry, RCX, EFER, CS, SS, LSTAR.
 * The layout of memory is that of machine_code.py. This is linked to run at 0xf0000.
 */
	.set	PAGE_TABLES, 0x1000
	.set	GDT, 0x4000
	.set	IDT, 0x5000
	.set	ARMED, 0x6000
	.set	MAIL, 0x8000
	.set	SCRATCH_STACK, 0xa000
	.set	STACKS, 0x10000
	.set	STACKS_END, 0x1c000
	.set	LOG, 0x40000
	.set	LOG_END, 0x44000
	.set	VALUES, 0x46000
	.set	VALUES_END, 0x47000
	.set	NOT_CANONICAL, 0x800000000000
	.set	MAIN_STACK_TOP, 0x11000
	.set	CODE_SELECTOR, 0x10
	.set	DATA_SELECTOR, 0x18
	.set	TSS_SELECTOR, 0x20
	.set	APIC, 0xfee00000
	.set	MASKED, 0x10000
	.set	FIRMWARE, 0x3a000

	.text
	.code16
start:
	movl	$0x200, %eax		/* OSFXSR */
	movl	%eax, %cr4
	pextrw	$7, %xmm0, %eax		/* RESET clears it, INIT does not */
	cmpw	$0x100, %ax
	jne	behind_reset
	ljmp	$FIRMWARE >> 4, $0
behind_reset:
	lgdtl	%cs:boot_gdtr - start
	movl	$0x33, %eax		/* PE MP ET NE */
	movl	%eax, %cr0
	ljmpl	$8, $in_32_bits

	.code32
in_32_bits:
	movw	$16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	cmpl	$1, MAIL
	jne	shut_down
	movl	$2, MAIL

	xorl	%eax, %eax
	movl	$STACKS, %edi
	movl	$(STACKS_END - STACKS) / 4, %ecx
	rep	stosl
	movl	$LOG, %edi
	movl	$(LOG_END - LOG) / 4, %ecx
	rep	stosl
	movl	$VALUES, %edi
	movl	$(VALUES_END - VALUES) / 4, %ecx
	rep	stosl
	movl	%eax, ARMED

	movl	$MASKED, APIC + 0x350	/* LINT0: the old interrupt controller */
	movl	$MASKED, APIC + 0x360	/* LINT1 */
	movl	$0x1ff, APIC + 0xf0	/* software enable */

	movl	$0x220, %eax
	movl	%eax, %cr4
	movdqa	digits, %xmm0		/* what marks append: N + 1 in the top byte of XMMN */
	movdqa	digits + 16, %xmm1
	movdqa	digits + 32, %xmm2
	movdqa	digits + 48, %xmm3
	movdqa	digits + 64, %xmm4
	movdqa	digits + 80, %xmm5
	movdqa	digits + 96, %xmm6
	movdqa	digits + 112, %xmm7
	movl	$PAGE_TABLES, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx	/* EFER.LME */
	movl	MAIL + 32, %eax
	xorl	%edx, %edx
	wrmsr
	movl	$0x80000033, %eax
	movl	%eax, %cr0
	lgdt	guest_gdtr
	lidt	guest_idtr
	ljmp	$CODE_SELECTOR, $in_64_bits

shut_down:
	movl	$3, MAIL
1:	hlt
	jmp	1b

	.code64
in_64_bits:
	movl	$DATA_SELECTOR, %esi
	movl	%esi, %ds
	movl	%esi, %es
	movl	%esi, %ss
	andb	$~2, GDT + TSS_SELECTOR + 5	/* not busy */
	movl	$TSS_SELECTOR, %eax
	ltr	%ax
	movl	$0xc0000081, %ecx	/* STAR */
	xorl	%eax, %eax
	movl	$0x00280010, %edx
	wrmsr
	movl	$0xc0000082, %ecx	/* LSTAR */
	movl	MAIL + 56, %eax
	xorl	%edx, %edx
	wrmsr
	movl	$0xc0000084, %ecx	/* SFMASK */
	movl	$0x47700, %eax
	wrmsr
	movl	MAIL + 48, %esi
	movl	$SCRATCH_STACK, %esp
	pushq	MAIL + 48
	pushq	$MAIN_STACK_TOP
	pushq	MAIL + 8
	pushq	MAIL + 40
	pushq	MAIL + 16
	xorl	%eax, %eax
	xorl	%ebx, %ebx
	movl	MAIL + 24, %ecx
	xorl	%edx, %edx
	xorl	%ebp, %ebp
	movl	$VALUES, %edi
	movabsq	$NOT_CANONICAL, %r13
	movl	$LOG, %r14d
	xorl	%r15d, %r15d
	iretq

	.balign	16
digits:
	.irp	digit, 1, 2, 3, 4, 5, 6, 7, 8
	.quad	0, \digit << 56
	.endr
boot_gdt:
	.quad	0, 0x00cf9b000000ffff, 0x00cf93000000ffff
boot_gdtr:
	.word	boot_gdtr - boot_gdt - 1
	.long	boot_gdt
guest_gdtr:
	.word	0x4f
	.long	GDT
guest_idtr:
	.word	0xfff
	.long	IDT

	.org	start + 0xfff0
	.code16
	.byte	0xe9			/* jmp start */
	.word	start - . - 2
	.org	start + 0x10000
