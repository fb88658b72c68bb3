# shellcheck shell=sh
# shellcheck disable=SC2034 # some of it is used by those who source it
# What this root has had, and under which commits. Sourced; starts no program.
#
# A record is a file in /var/lib/kimbox/done. Its first line is a digest of what was done. In the record of `setup` or of a step
# a line follows for each repository of the manifest under which it ran (its name, a tab, its commit, and " with submodules"
# where it has some), and then the line `end`. Records of images made by an older kimbox have the first line alone.
#
#   $pins    the same lines of the manifest at work: what the next record says, and what an earlier one is compared with
#   $stale   the steps that ran under another commit than the manifest has, as words STEP:REPOSITORY@COMMIT[,REPOSITORY@COMMIT]...
#            where the commits are those under which they ran

# Records lie on the root, so that they share its fate: a new root has had nothing, and one that was kept has had what they say.
record=/var/lib/kimbox/done
pin_tab='	'
pin_line='
'

# Bytes of $stale, which is part of an event: up to the first limit with commits, then names alone up to the second.
STALE_BYTES=2500
STALE_NAMES_BYTES=3000

# read_pins FOLDER: sets $pins to those of the manifest in the folder, each line with a line break before and after it
read_pins() {
	pins=$pin_line pin_inner=' '
	if [ -r "$1/submodules" ]; then
		while IFS=$pin_tab read -r pin_name _; do
			case $pin_inner in *" $pin_name "*) ;; *) pin_inner="$pin_inner$pin_name " ;; esac
		done <"$1/submodules"
	fi
	[ -r "$1/repositories" ] || return 0
	while IFS=$pin_tab read -r pin_name pin_commit _; do
		case $pin_inner in *" $pin_name "*) pin_commit="$pin_commit with submodules" ;; esac
		pins="$pins$pin_name$pin_tab$pin_commit$pin_line"
	done <"$1/repositories"
}

# read_record FILE: sets $record_digest, $record_pins as in $pins, and $record_end to yes where the record has its last line.
# Fails where there is no record.
read_record() {
	record_digest='' record_pins=$pin_line record_end=''
	[ -s "$1" ] || return 1
	{
		IFS= read -r record_digest
		while IFS= read -r pin_read; do
			case $pin_read in
			end) record_end=yes ;;
			*"$pin_tab"*) record_pins="$record_pins$pin_read$pin_line" ;;
			esac
		done
	} <"$1"
	[ -n "$record_digest" ]
}

# is_done_under FILE DIGEST USES: whether that record says that exactly this was done, and that each repository in USES (names
# with blanks between; `-` and nothing are none) was then at the commit that $pins has
is_done_under() {
	read_record "$1" && [ "$record_digest" = "$2" ] || return 1
	for pin_name in $3; do
		[ "$pin_name" != - ] || continue
		pin_wanted=${pins#*"$pin_line$pin_name$pin_tab"}
		pin_wanted=$pin_name$pin_tab${pin_wanted%%"$pin_line"*}
		case $record_pins in *"$pin_line$pin_wanted$pin_line"*) ;; *) return 1 ;; esac
	done
}

# find_former USES: sets $former to what the record that was read last names, and $pins does not: REPOSITORY@COMMIT, with commas
# between. Of the repositories in USES alone; of all where it is empty; of none where it is `-`.
find_former() {
	former=''
	[ "$1" != - ] || return 0
	pin_rest=${record_pins#"$pin_line"}
	while [ -n "$pin_rest" ]; do
		pin_read=${pin_rest%%"$pin_line"*}
		pin_rest=${pin_rest#*"$pin_line"}
		pin_name=${pin_read%%"$pin_tab"*} pin_commit=${pin_read#*"$pin_tab"}
		case " $1 " in "  " | *" $pin_name "*) ;; *) continue ;; esac
		case $pins in *"$pin_line$pin_read$pin_line"*) continue ;; esac
		pin_commit=${pin_commit%% *}
		case $pin_name$pin_commit in *[!a-z0-9-]*) continue ;; esac
		former="$former${former:+,}$pin_name@$pin_commit"
	done
}

# add_stale STEP FILE DIGEST USES: to $stale, where that record is one of this step under another commit
add_stale() {
	read_record "$2" && [ "$record_digest" = "$3" ] || return 0
	find_former "$4"
	[ -n "$former" ] || return 0
	pin_word=$1:$former
	[ $((${#stale} + ${#pin_word})) -le "$STALE_BYTES" ] || pin_word=$1
	[ $((${#stale} + ${#pin_word})) -le "$STALE_NAMES_BYTES" ] || return 0
	stale="$stale${stale:+ }$pin_word"
}

# find_stale FOLDER: sets $stale, and $pins, for the manifest in the folder
find_stale() {
	stale=''
	read_pins "$1"
	[ -r "$1/repositories" ] || return 0
	IFS=$pin_tab read -r pin_name pin_commit pin_path <"$1/repositories" || return 0 # without repositories nothing moves
	[ "$pin_name" != setup ] || add_stale setup "$record/setup-setup" "$pin_commit $pin_path" ''
	for pin_folder in "$1"/steps/*; do
		[ -r "$pin_folder/env" ] || continue
		KIMBOX_STEP_USES=''
		# shellcheck source=/dev/null
		. "$pin_folder/env"
		case $KIMBOX_STEP_RUN in
		once) add_stale "$KIMBOX_STEP" "$record/provision-$KIMBOX_STEP" "$KIMBOX_STEP_DIGEST" "$KIMBOX_STEP_USES" ;;
		boot) add_stale "$KIMBOX_STEP" "/run/kimbox/done/provision-$KIMBOX_STEP" "$KIMBOX_STEP_DIGEST" "$KIMBOX_STEP_USES" ;;
		esac
	done
}
