#!/bin/busybox sh
# The first process of the virtual machine. The kernel gives it as environment what its
# command line says: $modules and $script, paths of the machine outside.
/bin/busybox mkdir -p /proc /sys /dev /outside /changes /root
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
    overlay /root
for directory in proc sys dev; do mount --move /$directory /root/$directory; done
mount -t tmpfs run /root/run
mount -t bpf bpf /root/sys/fs/bpf

# The modules of this kernel, and a modprobe that reads what busybox's depmod wrote.
mkdir -p /root/lib/modules
mount -o bind "/outside$modules" /root/lib/modules
rm -f /root/sbin/modprobe
cp /bin/busybox /root/sbin/modprobe

exec switch_root /root /bin/sh "$script"
