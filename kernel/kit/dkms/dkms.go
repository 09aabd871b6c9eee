// Package dkms reads dkms.conf, the file by which the source of a kernel module
// says how it is built, see dkms(8).
//
// The file is a bash script that assigns variables. Nothing is run here: Parse
// follows what stands there plainly, that is, assignments whose values are made
// of literal text, quotes, variables and simple sums,
//
//	PACKAGE_NAME="example"
//	BUILT_MODULE_NAME[0]="$PACKAGE_NAME"
//	MAKE[0]="make KERNEL_DIR=${kernel_source_dir} all"
//	i=$((i+1))
//	BUILT_MODULE_NAME[$i]="example-extra"
//
// Conditions are not decided. What is assigned in an if, a loop, a function or
// behind && and || may or may not hold: a module declared there is Optional, and
// of the conditions on kernels only those outside count. The commands of the
// file (MAKE, PRE_BUILD, POST_BUILD) are for bash, see Commands.
package dkms

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// MaxSize is the size in bytes that a dkms.conf may have; lttng's has 12 KB.
const MaxSize = 1 << 20

// ErrFormat is wrapped by the errors of Parse.
var ErrFormat = errors.New("not a dkms.conf that can be read")

// Config is what a dkms.conf says.
type Config struct {
	Name    string // PACKAGE_NAME
	Version string // PACKAGE_VERSION

	// Modules are those that the build makes, by ascending index.
	Modules []Module

	// Unknown are variables that name modules and have values that only bash
	// can find out, with their line: there may be more Modules.
	Unknown []string

	Patches []Patch

	Exclusive Exclusive // the kernels it is for

	Depends []string // BUILD_DEPENDS: packages whose modules are to be built before
}

// Module is a module that the build makes.
type Module struct {
	Name     string // BUILT_MODULE_NAME: of the file, without ".ko"
	Location string // BUILT_MODULE_LOCATION: directory of the file, relative to the source
	DestName string // DEST_MODULE_NAME, otherwise Name
	Dest     string // DEST_MODULE_LOCATION: directory below that of the kernel's modules, "extra"
	Optional bool   // depends on a condition
}

// Patch is a file in patches/ to be applied with patch -p1.
type Patch struct {
	File  string // PATCH
	Match string // PATCH_MATCH: extended regular expression for the release; empty for all
}

// Exclusive says which kernels the source is for. Empty fields are for all.
type Exclusive struct {
	Kernel  string   // BUILD_EXCLUSIVE_KERNEL: extended regular expression for the release
	Min     string   // BUILD_EXCLUSIVE_KERNEL_MIN
	Max     string   // BUILD_EXCLUSIVE_KERNEL_MAX
	Arch    string   // BUILD_EXCLUSIVE_ARCH: extended regular expression for the machine, "x86_64"
	Options []string // BUILD_EXCLUSIVE_CONFIG: "CONFIG_X" has to be set, "!CONFIG_X" not
}

// Commands is a bash script that runs the file's own commands in the directory
// of the source: "pre", "make" or "post" is its argument. It expects the
// variables of dkms(8) in the environment: kernelver, arch, kernel_source_dir,
// dkms_tree, source_tree, module, module_version. As dkms does, it tells the
// first make of MAKE the kernel's release.
const Commands = `
. ./dkms.conf
run_script() {
	[ $# -gt 0 ] || return 0
	local script=$1
	shift
	chmod u+x "./$script"
	"./$script" "$@"
}
case $1 in
pre)
	# The conditions that Parse leaves open are decided by now.
	[[ -z $BUILD_EXCLUSIVE_KERNEL || $kernelver =~ $BUILD_EXCLUSIVE_KERNEL ]] || {
		echo "dkms.conf is for BUILD_EXCLUSIVE_KERNEL \"$BUILD_EXCLUSIVE_KERNEL\", this is $kernelver" >&2
		exit 1
	}
	[[ -z $BUILD_EXCLUSIVE_ARCH || $arch =~ $BUILD_EXCLUSIVE_ARCH ]] || {
		echo "dkms.conf is for BUILD_EXCLUSIVE_ARCH \"$BUILD_EXCLUSIVE_ARCH\", this is $arch" >&2
		exit 1
	}
	run_script $PRE_BUILD
	;;
post) run_script $POST_BUILD ;;
make)
	command=${MAKE[0]:-make -C $kernel_source_dir M=$dkms_tree/$module/$module_version/build modules}
	for i in "${!MAKE_MATCH[@]}"; do
		[[ -z ${MAKE_MATCH[i]} || ! $kernelver =~ ${MAKE_MATCH[i]} ]] || command=${MAKE[i]}
	done
	eval "${command/#make/make KERNELRELEASE=$kernelver}"
	;;
esac
`

var nameValid = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]*$`)

// Parse reads the file in data. vars are variables set from outside: see
// Commands.
func Parse(data []byte, vars map[string]string) (*Config, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, want at most %d", ErrFormat, len(data), MaxSize)
	}
	p := parser{src: string(data), vars: map[string]value{}}
	for name, text := range vars {
		p.vars[name] = value{text: text, known: true}
	}
	if err := p.parse(); err != nil {
		return nil, fmt.Errorf("%w: line %d: %w", ErrFormat, p.line(), err)
	}
	return p.config()
}

func (p *parser) config() (*Config, error) {
	var c Config
	for _, v := range []struct {
		name string
		to   *string
	}{{"PACKAGE_NAME", &c.Name}, {"PACKAGE_VERSION", &c.Version}} {
		got := p.vars[v.name]
		if !got.known || got.text == "" {
			return nil, fmt.Errorf("%w: no plain value for %s", ErrFormat, v.name)
		}
		if !nameValid.MatchString(got.text) {
			return nil, fmt.Errorf("%w: %s is %q, want letters, digits and ._+~-", ErrFormat, v.name, got.text)
		}
		*v.to = got.text
	}
	if err := p.modules(&c); err != nil {
		return nil, err
	}
	for _, i := range p.indices("PATCH") {
		file, match := p.at("PATCH", i), p.at("PATCH_MATCH", i)
		if !file.known || !match.known {
			return nil, fmt.Errorf("%w: line %d: no plain value for PATCH[%d]", ErrFormat, file.line, i)
		}
		if file.text == "" {
			continue
		}
		if !local(file.text) {
			return nil, fmt.Errorf("%w: line %d: patch %q leaves the source", ErrFormat, file.line, file.text)
		}
		c.Patches = append(c.Patches, Patch{File: file.text, Match: match.text})
	}
	plain := func(name string) string {
		if v := p.at(name, 0); v.known && !v.conditional {
			return v.text
		}
		return ""
	}
	c.Exclusive = Exclusive{
		Kernel: plain("BUILD_EXCLUSIVE_KERNEL"), Min: plain("BUILD_EXCLUSIVE_KERNEL_MIN"), Max: plain("BUILD_EXCLUSIVE_KERNEL_MAX"),
		Arch: plain("BUILD_EXCLUSIVE_ARCH"), Options: strings.Fields(plain("BUILD_EXCLUSIVE_CONFIG")),
	}
	for _, i := range p.indices("BUILD_DEPENDS") {
		c.Depends = append(c.Depends, strings.Fields(p.at("BUILD_DEPENDS", i).text)...)
	}
	return &c, nil
}

func (p *parser) modules(c *Config) error {
	indices := p.indices("BUILT_MODULE_NAME")
	if len(indices) == 0 && len(p.lost) == 0 { // dkms(8): the package's name is the default
		p.vars["BUILT_MODULE_NAME"] = value{text: c.Name, known: true}
		indices = []int{0}
	}
	for _, i := range indices {
		name := p.at("BUILT_MODULE_NAME", i)
		location, destName, dest := p.at("BUILT_MODULE_LOCATION", i), p.at("DEST_MODULE_NAME", i), p.at("DEST_MODULE_LOCATION", i)
		if !name.known || !location.known || !destName.known {
			c.Unknown = append(c.Unknown, fmt.Sprintf("BUILT_MODULE_NAME[%d] in line %d", i, name.line))
			continue
		}
		if name.text == "" {
			continue
		}
		m := Module{
			Name: name.text, Location: path.Clean("./" + location.text), DestName: name.text,
			Dest: strings.Trim(path.Clean("/"+dest.text), "/"), Optional: name.conditional,
		}
		if destName.text != "" {
			m.DestName = destName.text
		}
		for _, s := range []string{m.Name, m.DestName} {
			if !nameValid.MatchString(s) {
				return fmt.Errorf("%w: line %d: module %q, want letters, digits and ._+~-", ErrFormat, name.line, s)
			}
		}
		if !local(m.Dest) {
			return fmt.Errorf("%w: line %d: DEST_MODULE_LOCATION %q", ErrFormat, dest.line, dest.text)
		}
		if !local(m.Location) || path.IsAbs(location.text) {
			return fmt.Errorf("%w: line %d: BUILT_MODULE_LOCATION %q leaves the source", ErrFormat, location.line, location.text)
		}
		c.Modules = append(c.Modules, m)
	}
	c.Unknown = append(c.Unknown, p.lost...)
	return nil
}

// local says whether a relative path stays below where it starts.
func local(name string) bool {
	name = path.Clean(name)
	return !path.IsAbs(name) && name != ".." && !strings.HasPrefix(name, "../") && !strings.ContainsAny(name, "\x00\n")
}

// at returns element i of an array; a variable that is none is element 0.
func (p *parser) at(name string, i int) value {
	if v, ok := p.vars[element(name, i)]; ok {
		return v
	}
	return value{known: true}
}

// indices returns the indices of an array's elements in order.
func (p *parser) indices(name string) []int {
	var list []int
	for _, key := range slices.Collect(maps.Keys(p.vars)) {
		if key == name {
			list = append(list, 0)
		} else if rest, ok := strings.CutPrefix(key, name+"["); ok {
			i, _ := strconv.Atoi(strings.TrimSuffix(rest, "]"))
			list = append(list, i)
		}
	}
	slices.Sort(list)
	return list
}

// element is the key of an array's element: X[0] and X are the same in bash.
func element(name string, i int) string {
	if i == 0 {
		return name
	}
	return fmt.Sprintf("%s[%d]", name, i)
}
