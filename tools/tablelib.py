# SPDX-License-Identifier: BSD-3-Clause
"""The demo's results for human eyes."""


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
