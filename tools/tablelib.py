# SPDX-License-Identifier: BSD-3-Clause
"""The demo's results for human eyes."""
import sys


def _cell(value, form):
    return "-" if value is None else format(value, form)


def _clones(rows):
    head = f"{'clone':>5} {'host':>4}  {'order':10} {'verified':8} {'pages':>8} {'faults':>8} " \
           f"{'p50 us':>8} {'p99 us':>9} {'first us':>9} {'complete s':>10}"
    lines = [head, "-" * len(head)]
    for row in rows:
        lines.append(
            f"{row['id']:>5} {row['host']:>4}  {row['order']:10} {'yes' if row['verified'] else 'NO':8} "
            f"{_cell(row['pages'], 'd'):>8} {_cell(row['faults'], 'd'):>8} {_cell(row['fault_us_p50'], '.0f'):>8} "
            f"{_cell(row['fault_us_p99'], '.0f'):>9} {_cell(row['first_page_us'], '.0f'):>9} "
            f"{_cell(row['complete_s'], '.2f'):>10}")
    return lines


def _totals(table):
    ratio = "-" if table["wire_ratio"] is None else f"{table['wire_ratio']:.3f}"
    return [
        f"pages sent by multicast {table['multicast_pages']}, by unicast {table['unicast_pages']}; "
        f"never sent {table['never_sent_pages']} of {table['image_pages']} ({table['zero_pages']} are zero)",
        f"lockstep hits {table['lockstep_hits']}, duplicates dropped {table['duplicates']}, "
        f"frames lost {table['lost_frames']}, end game entered {table['end_game_entered']} times",
        f"wire bytes {table['wire_bytes']}, unique bytes {table['unique_bytes']}, ratio {ratio}",
        f"all clones complete after {table['seconds']:.1f} s",
    ]


def show(table):
    print("\n".join(["", *_clones(table["clones"]), "", *_totals(table)]), flush=True)


class Live:
    """A table redrawn in place; nothing where that is not possible."""

    def __init__(self):
        self.nb_lines = 0

    def show(self, lines):
        if not sys.stdout.isatty():
            return
        self.end()
        print("".join(line + "\x1b[K\n" for line in lines), end="", flush=True)
        self.nb_lines = len(lines)

    def end(self):
        """The next output takes the table's place."""
        if self.nb_lines:
            print(f"\x1b[{self.nb_lines}A\x1b[J", end="", flush=True)
        self.nb_lines = 0


def fork_progress(rows):
    lines = [f"{'clone':>5} {'host':>4}  {'state':10} {'pages':>8} {'faults':>8} {'p50 us':>8} {'p99 us':>8} {'first ms':>9}"]
    return lines + [f"{row['id']:>5} {row['host']:>4}  {row['state']:10} {_cell(row['pages'], 'd'):>8} "
                    f"{_cell(row['faults'], 'd'):>8} {_cell(row['fault_us_p50'], '.0f'):>8} "
                    f"{_cell(row['fault_us_p99'], '.0f'):>8} {_cell(row['first_answer_ms'], '.0f'):>9}" for row in rows]


def xen_clones(rows):
    lines = [f"{'clone':10} {'memory':7} {'ticks':>5} {'pages':>7} {'zeros':>7} {'faults':>7} {'p50 us':>8} {'evicted ms':>10} "
             f"{'runs ms':>8} {'first ms':>9}"]
    return lines + [f"{row['clone']:10} {'same' if row['checksum_ok'] else 'WRONG' if row['ticks'] else '-':7} "
                    f"{row['ticks']:>5} {_cell(row['pages'], 'd'):>7} {_cell(row['zero_pages'], 'd'):>7} "
                    f"{_cell(row['faults'], 'd'):>7} {_cell(row['fault_us_p50'], '.0f'):>8} "
                    f"{_cell(row['evicted_ms'], 'd'):>10} {_cell(row['running_ms'], 'd'):>8} "
                    f"{_cell(row['first_run_ms'], 'd'):>9}" for row in rows]


def show_xen(table):
    freeze, parent = table["freeze"], table["parent"]
    lines = ["", *xen_clones(table["clones"]), "",
             f"parent: copied in {freeze['copy_us'] / 1e6:.1f} s while it ran, suspended itself in {freeze['suspend_us'] / 1000:.0f} "
             f"ms, paused for {freeze['pause_us'] / 1000:.0f} ms to copy {freeze['pause_pages']} pages; descriptor of "
             f"{table['descriptor_bytes']} bytes after {freeze['descriptor_ms']} ms, image after {freeze['total_ms']} ms; runs on, "
             f"memory {'as it should be' if parent['checksum_ok'] else 'WRONG'} after {parent['ticks']} ticks"]
    print("\n".join(lines), flush=True)


def _median(values):
    values = sorted(value for value in values if value is not None)
    return values[len(values) // 2] if values else None


def show_fork(table):
    head = f"{'clone':>5} {'host':>4}  {'answers as':>10} {'counter':>7} {'memory':7} {'first ms':>9} " \
           f"{'pages then':>10} {'faults then':>11} {'p50 us':>8} {'p99 us':>8}"
    lines = ["", head, "-" * len(head)]
    for row in table["clones"]:
        lines.append(f"{row['id']:>5} {row['host']:>4}  {_cell(row['answered_id'], 'd'):>10} "
                     f"{_cell(row['counter'], 'd'):>7} {'same' if row['memory_ok'] else 'WRONG':7} "
                     f"{_cell(row['first_answer_ms'], '.0f'):>9} {_cell(row['pages_before_answer'], 'd'):>10} "
                     f"{_cell(row['faults_before_answer'], 'd'):>11} {_cell(row['fault_us_p50'], '.0f'):>8} "
                     f"{_cell(row['fault_us_p99'], '.0f'):>8}")
    parent = table["parent"]
    lines += [
        "",
        f"parent: paused for {table['parent_pause_ms']:.0f} ms, descriptor after {table['descriptor_ms']} ms, image "
        f"complete after {table['freeze_ms']} ms; runs on, answers as {parent['answered_id']}, memory "
        f"{'as it should be' if parent['memory_ok'] else 'WRONG'}",
        f"descriptor {table['descriptor_bytes']} bytes for {table['guest_ram_bytes'] >> 20} MiB; image of "
        f"{table['image_pages']} pages, {table['zero_pages']} of them zero",
        f"{table['avoided_pages']} pages stay behind, because they are free in the guest",
        f"wire bytes {table['wire_bytes']}: {table['multicast_pages']} pages by multicast, {table['unicast_pages']} by "
        f"unicast, lockstep hits {table['lockstep_hits']}",
        f"first answers after {_median(row['first_answer_ms'] for row in table['clones']) or 0:.0f} ms (median), "
        f"all clones up {table['seconds']:.1f} s after the parent asked",
    ]
    print("\n".join(lines), flush=True)
