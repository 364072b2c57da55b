/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* The guest program as bytes in a host program. */
	.section .rodata
	.globl	guest_program, guest_program_end
	.balign	16
guest_program:
	.incbin	GUEST_BINARY
guest_program_end:

	.section .note.GNU-stack, "", @progbits
