/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
#ifndef KM_GATE_H
#define KM_GATE_H

#include <stdatomic.h>
#include <stdint.h>

/*
 * A lock for two groups of threads: any number of one group may be inside at a time, and nobody of
 * the other group. Sections are expected to take microseconds, so who has to wait looks again for
 * that long before it sleeps. A group that waits keeps further threads of the other one from joining
 * those inside, so neither group can starve the other. Not recursive. Zero is an open gate.
 */
struct km_gate {
	_Atomic uint32_t word; /* for each side: threads inside, and a flag that some wait */
};

enum km_gate_side { KM_GATE_LEFT, KM_GATE_RIGHT };

void km_gate_enter(struct km_gate *g, enum km_gate_side side);
void km_gate_leave(struct km_gate *g, enum km_gate_side side);

#endif
