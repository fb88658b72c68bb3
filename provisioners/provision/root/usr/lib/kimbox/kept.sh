# shellcheck shell=sh
# shellcheck disable=SC2154 # some of it is set by provisiond
# What provisiond does with the root that a boot with `resnap` has put back (/usr/lib/kimbox/kept). Sourced by it, after marks.sh.
#
#   /run/kimbox/kept           written by the initramfs, until provisiond has compared it: the name of the manifest whose root was put
#                              back; or `- REASON`, if a kept root was there and could not be put back
#   /persistent/kimbox/unkept  `NAME REASON`: the root of that manifest cannot be kept on this disk, which was reported

# restart_empty REASON: ends what is kept, and restarts the box with an empty snapshot. Nothing has run on this root.
restart_empty() {
	/usr/lib/kimbox/kept drop >/dev/null 2>&1 || failed provisiond kept 1 "the kept root of another manifest cannot be removed"
	event kept status=dropped manifest="$digest" reason="$1"
	grub-editenv /boot/grub/grubenv set next_entry=resnap >/dev/null 2>&1
	sync
	systemctl --force --force reboot
	exit 1
}

# check_kept [NAME]: compares the root that was put back with the manifest of this boot, whose folder has that name. Without a name,
# the commit of a followed branch is not known yet.
check_kept() {
	[ -r /run/kimbox/kept ] || return 0
	read -r kept_name kept_reason </run/kimbox/kept
	if [ "$kept_name" = - ]; then
		rm -f /run/kimbox/kept
		event kept status=refused manifest="$digest" reason="$kept_reason"
		return
	fi
	if [ "$secured" = yes ]; then restart_empty "the box is sealed"; fi
	if [ "$KIMBOX_KEEP" = nothing ]; then restart_empty "the manifest says \`keep: nothing\`"; fi
	[ "${kept_name%%-*}" = "$digest" ] || restart_empty "the box has another manifest"
	[ -n "${1:-}" ] || return 0
	[ "$kept_name" = "$1" ] || restart_empty "the branch that the box follows has another commit"
	rm -f /run/kimbox/kept
	event kept status=restored manifest="$digest" reason=
}

# drop_other NAME: ends what is kept of another manifest than the one of that name, before that one is provisioned
drop_other() {
	kept_name=$(/usr/lib/kimbox/kept name) || return 0
	[ "$kept_name" = "$1" ] || [ -z "$kept_name" ] || /usr/lib/kimbox/kept drop
}

# keep_root NAME: keeps this root, if it was new in this boot and the whole manifest was provisioned on it
keep_root() {
	[ "$mode$secured$part" = resnapno ] && [ "$KIMBOX_KEEP" != nothing ] || return 0
	case $by in first | resnap) ;; *) return 0 ;; esac
	[ ! -e /run/credentials/@system/kimbox.job ] || return 0 # the machine of a job has no other boot
	kept_name=''
	[ ! -r "$state/unkept" ] || read -r kept_name _ <"$state/unkept"
	[ "$kept_name" != "$1" ] || return 0
	kept_reason=$(/usr/lib/kimbox/kept save "$1" 2>/dev/null)
	case $? in
	0) event kept status=saved manifest="$digest" reason= ;;
	3)
		event kept status=unsaved manifest="$digest" reason="$kept_reason"
		{ printf '%s %s\n' "$1" "$kept_reason" >"$state/unkept.new" && mv -f "$state/unkept.new" "$state/unkept"; } 2>/dev/null
		;;
	*) event kept status=unsaved manifest="$digest" reason="$kept_reason" ;;
	esac
}
