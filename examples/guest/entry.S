/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* The host enters here with rdi = mailbox and rsp = the vCPU's stack, in 64-bit user mode. */
#include "protocol.h"

	.section .text.entry, "ax"
	.globl	guest_entry
guest_entry:
	movl	$GUEST_EVENT_HELLO, %eax
	movl	$GUEST_PORT, %edx
	outl	%eax, %dx
	xorl	%ebp, %ebp
	call	guest_main
	ud2

	.section .note.GNU-stack, "", @progbits
