# SPDX-License-Identifier: MIT OR Apache-2.0
# What jobs share. Each result is one line on the console that the harness parses.

# fh_case STEP CASE EXPECTED SEEN [HELD]: held is whether EXPECTED equals SEEN, unless HELD (true or false) says it.
fh_case() {
    fh_held=${5:-}
    if [ -z "$fh_held" ]; then
        if [ "$3" = "$4" ]; then fh_held=true; else fh_held=false; fi
    fi
    echo "@fh {\"step\":\"$1\",\"case\":\"$2\",\"expected\":\"$(fh_quote "$3")\",\"seen\":\"$(fh_quote "$4")\",\"held\":$fh_held}"
}

# The text as it may stand in a JSON string: one line, no quotes, no backslashes, no control characters.
fh_quote() {
    printf '%s' "$1" | tr '\n\t' '  ' | tr -d '"\\\000-\037'
}

# fh_dmesg PATTERN: the first kernel line that matches, without its time stamp.
fh_dmesg() {
    dmesg | grep -E -m1 -- "$1" | sed 's/^\[[^]]*\] //'
}

# fh_sacrifices N: so many more threads of the hostile module are to die, each with one oops.
fh_sacrifices() {
    fh_dead=$(cat /sacrifices 2>/dev/null || echo 0)
    echo "$((fh_dead + $1))" > /sacrifices
}

# fh_lockdep: whether the kernel still watches its locks; it stops at its first complaint.
fh_lockdep() {
    sed -n 's/^ *\(debug_locks: *\)/debug_locks: /p' /proc/lockdep_stats 2>&1
}

# fh_leaks: has a kernel that can look for memory without a name; it tells the log.
fh_leaks() {
    [ -e /sys/kernel/debug/kmemleak ] || return 0
    # The second look finds what the first had seen change.
    echo scan > /sys/kernel/debug/kmemleak
    echo scan > /sys/kernel/debug/kmemleak
    head -c 8192 /sys/kernel/debug/kmemleak
}

# fh_kernel_clean STEP: the kernel has complained of nothing but the sacrificed threads, counted one by one.
fh_kernel_clean() {
    fh_dead=$(cat /sacrifices 2>/dev/null || echo 0)
    if [ -e /sys/kernel/debug/kmemleak ]; then
        sleep 6
        fh_leaks
    fi
    dmesg > /kernel-log
    fh_first=$(grep -c 'Booting Linux on physical CPU' /kernel-log)
    fh_bad=$(grep -cE 'WARNING:|BUG:|Oops|Internal error|Bad page|Bad rss|soft lockup|blocked for more than|refcount_t:|corruption|nobody cared|[Ss]tall.* on CPU|Out of memory|new suspected memory leak|Kernel panic' /kernel-log)
    fh_oopses=$(grep -c 'Internal error: Oops: ' /kernel-log)
    fh_threads=$(grep -c 'Comm: fh_sacrifice ' /kernel-log)
    fh_case "$1" kernel-log-clean "whole, $fh_dead threads sacrificed, $fh_dead oopses, $fh_dead complaints in all" \
        "$([ "$fh_first" -eq 1 ] && echo whole || echo "not whole"), $fh_threads threads sacrificed, $fh_oopses oopses, $fh_bad complaints in all"
    rm /kernel-log
}

# fh_vmm ARGUMENTS: runs the VMM; one that crashes, or reports nothing, is a case that did not hold.
fh_vmm() {
    freehold-vmm "$@"
    fh_case vmm "$1-exit-status" 0 "$?"
}
