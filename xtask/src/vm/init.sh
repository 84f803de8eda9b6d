#!/bin/busybox sh
# The first process of the virtual machine. The kernel gives it as environment what its
# command line says: $modules and $script, paths of the machine outside.
/bin/busybox mkdir -p /proc /sys /dev /outside /changes /new
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
modprobe -a virtio_pci 9pnet_virtio 9p overlay

# The file system of the machine outside, which stays as it is: what is written is written
# to memory. Of what runs there, nothing is to be seen.
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=524288 outside /outside
mount -t tmpfs changes /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/outside,upperdir=/changes/upper,workdir=/changes/work \
    overlay /new
for directory in proc sys dev; do mount --move /$directory /new/$directory; done
mount -t tmpfs run /new/run
mount -t bpf bpf /new/sys/fs/bpf

# The modules of this kernel, and a modprobe that reads what busybox's depmod wrote.
mkdir -p /new/lib/modules
mount -o bind "/outside$modules" /new/lib/modules
rm -f /new/sbin/modprobe
cp /bin/busybox /new/sbin/modprobe

exec switch_root /new /bin/sh "$script"
