/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef HOST_STATE_NMIS_H
#define HOST_STATE_NMIS_H

/* Creates /proc/host_nmis; no NMIs are sent before somebody writes to it. */
int nmis_start(void);
void nmis_end(void);

#endif
