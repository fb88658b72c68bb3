# shellcheck shell=sh
# shellcheck disable=SC2034 # $disk is used by those who source it
# Finds a disk that the host has attached for one purpose, by its serial number. Sourced; starts no program.

# find_disk SERIAL: sets $disk to its device, or fails
find_disk() {
	for disk_file in /sys/block/vd*/serial; do
		disk_serial=
		{ read -r disk_serial <"$disk_file"; } 2>/dev/null # the file has no line break at its end
		disk=${disk_file%/serial}
		disk=/dev/${disk##*/}
		[ "$disk_serial" != "$1" ] || return 0
	done
	return 1
}
