# shellcheck shell=sh
# In maintain mode the real root is mounted, and changes become part of every later snapshot. The prompt shows that.
if [ -r /run/kimbox/mode ] && read -r kimbox_mode </run/kimbox/mode && [ "$kimbox_mode" = maintain ]; then
	debian_chroot=maintain
	export debian_chroot
fi
unset kimbox_mode
