# shellcheck shell=sh
# What came of a manifest, as symbolic links in /persistent/kimbox to its folder. Sourced.
#
#   current     what the host wants
#   good        what reached ready last
#   trying      is being tried; found at a start of the box, that try was interrupted
#   retrying    is being tried for the second and last time
#   failed      setup, a step or a probe failed
#   fatal       the box went down in both tries
#
# A manifest that is not good yet has one link, which passes through the last five names by rename(2): that is atomic and takes
# neither a block nor an inode, so that it works on a full disk too.

state=/persistent/kimbox

# marked NAME FOLDER: whether the manifest in that folder bears the mark
marked() {
	# shellcheck disable=SC3013 # dash has -ef
	[ "$state/$1" -ef "$2" ]
}

# mark NAME FOLDER: the manifest in that folder (an absolute path) bears this mark in place of any other
mark() {
	for had in trying retrying failed fatal; do
		marked "$had" "$2" || continue
		[ "$had" = "$1" ] || mv -fT "$state/$had" "$state/$1"
		return
	done
	ln -sfn "manifests/${2##*/}" "$state/$1.new" && mv -fT "$state/$1.new" "$state/$1"
}

# going_down: whether a reboot or shutdown is under way. What it cuts short has neither failed nor succeeded, even where its last
# command ended with 0: the mark of the try stays, for the next start to see.
going_down() {
	[ -d /run/systemd/system ] && [ "$(systemctl is-system-running 2>/dev/null)" = stopping ]
}
