# shellcheck shell=sh
# Where the root itself was booted, what is changed stays in the base of every later boot: the prompt says so.
if [ -r /run/kimbox/mode ] && read -r kimbox_mode </run/kimbox/mode && [ "$kimbox_mode" = maintain ]; then
	debian_chroot=maintain
	export debian_chroot
fi
unset kimbox_mode
