# shellcheck shell=sh
# The result of a manifest, as symbolic links in /persistent/kimbox to its folder. Sourced.
#
#   current     the manifest that the host has sent
#   good        the last manifest that reached ready
#   trying      an attempt is in progress; if it exists at a start of the box, that attempt was interrupted
#   retrying    the second and last attempt is in progress
#   failed      setup, a step or a probe failed
#   fatal       the box went down in both attempts
#
# A manifest that is not good yet has one link, which gets the last five names one after the other by rename(2). That is atomic, and
# needs neither a block nor an inode, so it also works on a full disk.

state=/persistent/kimbox

# marked NAME FOLDER: succeeds if the manifest in that folder has the mark
marked() {
	# shellcheck disable=SC3013 # dash has -ef
	[ "$state/$1" -ef "$2" ]
}

# mark NAME FOLDER: gives the manifest in that folder (an absolute path) this mark, instead of any other
mark() {
	for had in trying retrying failed fatal; do
		marked "$had" "$2" || continue
		[ "$had" = "$1" ] || mv -fT "$state/$had" "$state/$1"
		return
	done
	if [ -L "$state/$1" ]; then
		ln -sfn "manifests/${2##*/}" "$state/$1.new" && mv -fT "$state/$1.new" "$state/$1"
	else
		ln -sn "manifests/${2##*/}" "$state/$1"
	fi
}

# going_down: succeeds if a reboot or shutdown is in progress. A command that it interrupts has neither failed nor succeeded, even if
# it ended with 0: the mark of the attempt stays, for the next start.
going_down() {
	[ -d /run/systemd/system ] && [ "$(systemctl is-system-running 2>/dev/null)" = stopping ]
}
