"""The verbs of kimbox: their groups, their modules, and one line about each for `kimbox --help`."""

from __future__ import annotations

#: The verbs in the groups of `kimbox --help`: verb -> (module of kimbox.cli with a function of the same name, summary).
#: The summary is not in the module, so that the help loads no verb. A summary has at most 60 characters.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Start and stop a box": {
        "init": ("init", "Write a kimbox.yaml to start from into this folder"),
        "validate": ("validate", "Check box specs; show every error with file and line"),
        "build": ("build", "Build or download the image of a box, and start nothing"),
        "up": ("up", "Start a box: build its image, boot and provision it"),
        "provision": ("provision", "Provision a running box again after a change or failure"),
        "reload": ("reload", "Halt a box and start it again with its current spec"),
        "halt": ("halt", "Shut a box down; its disk is kept"),
        "suspend": ("suspend", "Save a running box, memory included, and stop it"),
        "resume": ("resume", "Continue a suspended box"),
        "clone": ("clone", "Start machines that continue a provisioned box"),
        "save": ("save", "Save a halted box in a store"),
        "stop": ("stop", "Shut a box down and save it"),
        "start": ("start", "Start a box that was stopped, here or from a save"),
        "create": ("create", "Make a box of another box or of a save"),
        "service": ("service", "Keep a box up: with the host, and after a crash of QEMU"),
        "extend": ("extend", "Move the end of the lifetime of a box"),
        "destroy": ("destroy", "Remove a box and its disk"),
    },
    "Work in a box": {
        "status": ("status", "Show the state of a box and how to reach it"),
        "list": ("list_", "List all boxes of this user"),
        "ssh": ("ssh", "Open a shell in a box"),
        "exec": ("exec_", "Run a command in a box"),
        "cp": ("cp", "Copy files and folders to and from a box"),
        "view": ("view", "Show the screen of a box that has one"),
        "logs": ("logs", "Show the output of provisioning, or another log of a box"),
        "snapshot": ("snapshot", "Save, restore, list and delete snapshots of a box"),
        "user": ("user", "Add, remove and list accounts of people in a box"),
        "ssh-config": ("ssh_config", "Print the ssh_config(5) entry of a box"),
    },
    "Pins": {
        "lock": ("lock", "Write kimbox.lock: pin each package and each repository"),
        "diff": ("diff", "Show the differences between two locks, or lock and box"),
        "verify": ("verify", "Build an image again and compare it byte for byte"),
        "provenance": ("provenance", "Write the SBOM and the provenance statement of a box"),
        "report": ("report", "Write one page about a box, for a person to read"),
    },
    "Jobs": {
        "job": ("job", "Run a folder as a job in a box: pack it, extract results"),
    },
    "Packages and maintenance": {
        "package": ("package", "Export a box for Vagrant or OpenStack, as OVA, qcow2 or raw disk"),
        "publish": ("publish", "Bring the image of a box into a cloud"),
        "unpublish": ("unpublish", "Remove the image of a box from a cloud"),
        "box": ("box", "Add, list and remove boxes that were made elsewhere"),
        "render": ("render", "Write a Vagrantfile that makes a box without kimbox"),
        "maintain": ("maintain", "Change the base image of a box and make a new image of it"),
        "shrink": ("shrink", "Reduce the disk of a halted box to the space in use"),
    },
    "Sealing": {
        "secure": ("secure", "Give a box a role of its site and seal it"),
        "audit": ("audit", "Check how well a box is sealed"),
    },
    "Host": {
        "doctor": ("doctor", "Check this host; show the command that fixes each fault"),
        "prune": ("prune", "Remove unused images and the remains of interrupted runs"),
        "expire": ("expire", "End lifetimes that are over, send notifications"),
        "schema": ("schema", "Print the JSON Schema of box specs, for editors"),
        "completion": ("completion", "Print the completion script of bash, zsh or fish"),
    },
}

#: Every verb, in the order of the help, and its module.
VERBS = {verb: module for verbs in GROUPS.values() for verb, (module, _) in verbs.items()}
