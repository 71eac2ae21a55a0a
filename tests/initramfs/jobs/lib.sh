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

# fh_vmm ARGUMENTS: runs the VMM; one that crashes, or reports nothing, is a case that did not hold.
fh_vmm() {
    freehold-vmm "$@"
    fh_case vmm "$1-exit-status" 0 "$?"
}
