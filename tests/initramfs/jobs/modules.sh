# SPDX-License-Identifier: MIT OR Apache-2.0
# Loading and unloading of the two modules, each as a case of the step that asks for it.

# fh_load_freehold STEP [FILE]
fh_load_freehold() {
    # A thread of the host dies in some attacks, on purpose; the host does not.
    echo 0 > /proc/sys/kernel/panic_on_oops
    fh_case "$1" module-loads "loaded" "$(insmod "${2:-/lib/freehold.ko}" 2>&1 && echo loaded)"
    fh_case "$1" device "a character device" "$([ -c /dev/freehold ] && echo 'a character device' || echo none)"
}

# fh_load_hostile STEP
fh_load_hostile() {
    fh_case "$1" hostile-module-loads "loaded" "$(insmod /lib/fh_hostile.ko 2>&1 && echo loaded)"
}

# fh_load_debian MODULE...: modules of the stock kernel's package, in this order; a kernel may have them built in.
fh_load_debian() {
    for fh_file in "$@"; do
        for fh_packed in /lib/debian/$fh_file.ko*; do
            [ -f "$fh_packed" ] || continue
            case $fh_packed in
                *.xz) xz -dc "$fh_packed" > /tmp/$fh_file.ko ;;
                *) cp "$fh_packed" /tmp/$fh_file.ko ;;
            esac
            insmod /tmp/$fh_file.ko
            rm /tmp/$fh_file.ko
        done
    done
}

# fh_load_vhost STEP: the kernel's own server of queues in a process's memory.
fh_load_vhost() {
    fh_load_debian vsock vmw_vsock_virtio_transport_common vhost_iotlb vhost vhost_vsock
    fh_case "$1" vhost "a character device" "$([ -c /dev/vhost-vsock ] && echo 'a character device' || echo none)"
}

# fh_unload STEP: both modules go, and nothing of them stays.
fh_unload() {
    fh_case "$1" modules-unload "unloaded" "$(rmmod fh_hostile 2>&1 && rmmod freehold 2>&1 && echo unloaded)"
    fh_case "$1" nothing-left "no node, no module" \
        "$([ -e /dev/freehold ] && echo -n 'a node' || echo -n 'no node'; grep -q '^freehold ' /proc/modules && echo ', a module' || echo ', no module')"
}
