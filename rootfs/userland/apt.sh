# Sourced by fetch.sh and e2fsprogs.sh: a private APT, which asks the mirrors of
# Debian that the machine is configured to use, for any release and architecture
# and as any user, and leaves the machine's own APT alone.

# mirrors prints "CODENAME URI" of the component main, for each release of Debian
# that the machine's APT uses: bookworm, bookworm-updates, bookworm-security.
mirrors() {
	apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
		sed -n 's/^Debian main //p' | sort -u
}

# private_apt DIR ARCH TYPE [RELEASE] makes a private APT in DIR and fetches its
# package lists. TYPE is deb or deb-src. With a RELEASE it has that one instead of
# those the machine uses. Commands use it with the environment APT_CONFIG=DIR/apt.conf.
private_apt() {
	local dir arch=$2 type=$3 release=${4-} list keyring signed=
	mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
	dir=$(cd "$1" && pwd)
	list=$(mirrors)
	if [[ -z $list ]]; then
		echo "APT has no package lists of Debian; 'apt-get update' as root fetches them ('make deps' does)" >&2
		return 1
	fi
	if [[ -n $release ]]; then # it is where the machine's release without a suffix is
		list=$(sed -n "/^[^ -]* /{s/^[^ ]* /$release /p;q}" <<<"$list")
	fi
	for keyring in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
		if [[ -e $keyring ]]; then
			signed="[signed-by=$keyring] "
			break
		fi
	done
	while read -r codename uri; do
		printf '%s %s%s %s main\n' "$type" "$signed" "$uri" "$codename"
	done <<<"$list" >"$dir/sources.list"
	# Keep how the machine reaches its mirrors, drop what it does afterwards.
	{
		apt-config dump | grep -Ev '^(APT::Update::|DPkg::|Dir|APT::Architecture)'
		cat <<-CONF
			Dir::Etc::SourceList "$dir/sources.list";
			Dir::Etc::SourceParts "/dev/null";
			Dir::Etc::Parts "/dev/null";
			Dir::Etc::Main "/dev/null";
			Dir::Etc::Preferences "/dev/null";
			Dir::Etc::PreferencesParts "/dev/null";
			Dir::State::Lists "$dir/lists";
			Dir::State::status "/dev/null";
			Dir::Cache "$dir/cache";
			APT::Architecture "$arch";
			APT::Architectures "$arch";
			APT::Sandbox::User "";
			Acquire::Retries "3";
		CONF
	} >"$dir/apt.conf"
	APT_CONFIG=$dir/apt.conf apt-get update -qq
}
