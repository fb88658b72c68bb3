# shellcheck shell=sh
# shellcheck disable=SC2034,SC2154 # some of it is used by those who source it, some comes from there
# Writes /etc/kimbox/box.env and box.json, which describe this root for shell scripts and other programs. Sourced, after
# events.sh, marks.sh and pins.sh.
#
# The manifest contains the part that the host knows. These values are known only here, and are put before it:
#
#   KIMBOX_MANIFEST          digest of the current manifest
#   KIMBOX_PROVISIONED_AT    when provisioning of this root was complete, in UTC; empty before that
#   KIMBOX_PROVISIONED_BY    first, resnap: a new root, of a box that was never ready before, or was; keep: a root that had been
#                            provisioned before; hand: runsetup
#   KIMBOX_BOOT_MODE         the mode of that boot
#   KIMBOX_ROLE, KIMBOX_SITE `dev` and empty until the box takes a role; then the role and the site
#   KIMBOX_USERNAME          the name under which the site knows the box; empty until then
#   KIMBOX_UNPINNED          repositories that are not at the commit of the lock
#   KIMBOX_SETUP_COMMIT      commit of the setup repository
#   KIMBOX_STALE             steps that ran with another commit of a repository than this manifest has, as $stale of pins.sh
#   KIMBOX_PART              the part of the manifest that was run alone (`only STEP`, `from STEP`); empty for the whole

box_folder=/etc/kimbox

# write_box FOLDER DIGEST BY UNPINNED COMMIT PART [complete]: for the manifest in that folder; `complete`: provisioning of this root
# is complete. If the files cannot be written, that is reported and they are removed: a wrong description is worse than none.
write_box() {
	[ -r "$1/box.json" ] || return 0
	box_at=''
	[ -z "${7:-}" ] || box_at=$(date -u +%Y-%m-%dT%H:%M:%SZ)
	box_role=dev box_site='' box_user='' box_mode=keep box_list=''
	if [ -e "$state/secured" ] && [ -r /persistent/secure/answers.env ]; then
		# shellcheck source=/dev/null
		. /persistent/secure/answers.env
		box_role=$KIMBOX_ROLE box_site=$KIMBOX_SITE box_user=$KIMBOX_USERNAME
	fi
	if [ -r /run/kimbox/mode ]; then read -r box_mode </run/kimbox/mode; fi
	for box_name in $4; do
		box_list="$box_list${box_list:+, }\"$box_name\""
	done
	find_stale "$1"
	box_stale
	box_at_json=null box_commit_json=null box_part_json=null
	[ -z "$box_at" ] || box_at_json="\"$box_at\""
	[ -z "$5" ] || box_commit_json="\"$5\""
	[ -z "$6" ] || box_part_json="\"$6\""
	if ! { {
		[ -d "$box_folder" ] || mkdir -p "$box_folder"
	} && {
		printf "KIMBOX_%s='%s'\n" MANIFEST "$2" PROVISIONED_AT "$box_at" PROVISIONED_BY "$3" BOOT_MODE "$box_mode" \
			ROLE "$box_role" SITE "$box_site" USERNAME "$box_user" UNPINNED "$4" SETUP_COMMIT "$5" PART "$6" STALE "$stale" && cat "$1/box.env"
	} >"$box_folder/.env.new" && {
		printf '{\n  "manifest": "%s",\n  "role": "%s",\n  "site": "%s",\n  "username": "%s",\n  "unpinned": [%s],\n  "stale": {%s},\n' \
			"$2" "$box_role" "$box_site" "$box_user" "$box_list" "$box_json" &&
			printf '  "provisioned": {"at": %s, "by": "%s", "boot_mode": "%s", "setup_commit": %s, "part": %s},\n' \
				"$box_at_json" "$3" "$box_mode" "$box_commit_json" "$box_part_json" && { read -r _ && cat; } <"$1/box.json"
	} >"$box_folder/.json.new" && mv -f "$box_folder/.json.new" "$box_folder/box.json" &&
		mv -f "$box_folder/.env.new" "$box_folder/box.env"; }; then
		rm -f "$box_folder/box.env" "$box_folder/box.json" "$box_folder/.env.new" "$box_folder/.json.new"
		echo "$box_folder/box.env and box.json cannot be written: is the root file system full?" >&2
	fi
}

# box_stale: sets $box_json to the members of `stale`: for each step an object of repositories and commits
box_stale() {
	box_json=''
	for box_word in $stale; do
		box_pins='' box_rest=''
		case $box_word in *:*) box_rest=${box_word#*:}, ;; esac
		while [ -n "$box_rest" ]; do
			box_name=${box_rest%%,*} box_rest=${box_rest#*,}
			box_pins="$box_pins${box_pins:+, }\"${box_name%@*}\": \"${box_name#*@}\""
		done
		box_json="$box_json${box_json:+, }\"${box_word%%:*}\": {$box_pins}"
	done
}

# has_box DIGEST: succeeds if box.env describes that manifest as complete
has_box() {
	[ -r "$box_folder/box.env" ] || return 1
	{ read -r box_had && read -r box_at; } <"$box_folder/box.env"
	[ "$box_had" = "KIMBOX_MANIFEST='$1'" ] && [ "$box_at" != "KIMBOX_PROVISIONED_AT=''" ]
}

# report_box: sends the description to the host
report_box() {
	[ -r "$box_folder/box.env" ] || return 0
	(
		# shellcheck source=/dev/null
		. "$box_folder/box.env"
		event box manifest="$KIMBOX_MANIFEST" at="$KIMBOX_PROVISIONED_AT" by="$KIMBOX_PROVISIONED_BY" mode="$KIMBOX_BOOT_MODE" \
			role="$KIMBOX_ROLE" site="$KIMBOX_SITE" username="${KIMBOX_USERNAME:-}" unpinned="$KIMBOX_UNPINNED" commit="$KIMBOX_SETUP_COMMIT" \
			part="$KIMBOX_PART" stale="${KIMBOX_STALE:-}"
	)
}

# setup_commit_of FOLDER: sets $setup_commit from the manifest in the folder; empty if it has no setup repository
setup_commit_of() {
	box_tab='	'
	IFS=$box_tab read -r box_name setup_commit _ <"$1/repositories" || box_name=''
	[ "$box_name" = setup ] || setup_commit=''
}
