"""Box -> text: manifest, grub.cfg, guest files, Vagrantfile. Pure: the same box gives the same bytes."""
