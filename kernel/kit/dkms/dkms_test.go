package dkms

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

var vars = map[string]string{"kernelver": "6.12.0-cloud-amd64", "kernel_source_dir": "/kit/build", "dkms_tree": "/t", "arch": "x86_64"}

// conditions is in the manner of a package with a list of modules that the
// kernel's configuration decides about.
const conditions = `PACKAGE_NAME="probes"
PACKAGE_VERSION=2.13
i=0
if [ -f $kernel_source_dir/.config ]; then
    . $kernel_source_dir/.config
fi
VERSION=$(echo $kernelver | sed -ne 's/\([0-9]\+\)\..*/\1/p')
MAKE[$i]="make -C $kernel_source_dir M=$dkms_tree/$PACKAGE_NAME modules"
BUILT_MODULE_NAME[$i]="probe-lib"
BUILT_MODULE_LOCATION[$i]="src/lib/"
DEST_MODULE_LOCATION[$i]="/extra/lib"
i=$((i+1))
if [ "$KCONFIG" = "true" ] && [ -n "$CONFIG_NET" ] && \
   ( [ "$VERSION" -ge 3 -a "$PATCHLEVEL" -ge 10 ] || [ "$VERSION" -ge 4 ] ); then
   BUILT_MODULE_NAME[$i]="probe-net" # if there is a network
   i=$((i+1))
fi
case $arch in
x86_64) BUILT_MODULE_NAME[$i]=probe-x86 ;;
esac
i=$((i + 1))
[ -n "$CONFIG_SMP" ] && BUILT_MODULE_NAME[$i]=probe-smp
i=$(($i+1))
BUILT_MODULE_NAME[i]='probe'-last
`

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     Config
	}{
		{"default module", "PACKAGE_NAME=a\nPACKAGE_VERSION='1.0+dfsg'\nDEST_MODULE_LOCATION=/kernel/drivers/md", Config{
			Name: "a", Version: "1.0+dfsg", Modules: []Module{{"a", ".", "a", "kernel/drivers/md", false}},
		}},
		{"conditions", conditions, Config{Name: "probes", Version: "2.13", Modules: []Module{
			{"probe-lib", "src/lib", "probe-lib", "extra/lib", false}, {"probe-net", ".", "probe-net", "", true},
			{"probe-x86", ".", "probe-x86", "", true}, {"probe-smp", ".", "probe-smp", "", true}, {"probe-last", ".", "probe-last", "", false},
		}}},
		{"variables", `NAME=x; PACKAGE_NAME="${NAME}y" PACKAGE_VERSION=$NAME\ 1
PACKAGE_VERSION=1
BUILT_MODULE_NAME="$PACKAGE_NAME"
DEST_MODULE_NAME="${BUILT_MODULE_NAME[0]}-new"
PATCH[1]=one.patch; PATCH_MATCH[1]="^6\.1[2-9]"
PATCH[0]="zero.patch"
BUILD_EXCLUSIVE_KERNEL="^[56]\."
BUILD_EXCLUSIVE_CONFIG="CONFIG_I2C !CONFIG_DRM"
if [ -z "$CONFIG_X" ]; then BUILD_EXCLUSIVE_ARCH="^never$"; fi
BUILD_DEPENDS[0]=spl`, Config{
			Name: "xy", Version: "1", Modules: []Module{{"xy", ".", "xy-new", "", false}},
			Patches:   []Patch{{"zero.patch", ""}, {"one.patch", `^6\.1[2-9]`}},
			Exclusive: Exclusive{Kernel: `^[56]\.`, Options: []string{"CONFIG_I2C", "!CONFIG_DRM"}}, Depends: []string{"spl"},
		}},
		{"list", "PACKAGE_NAME=a PACKAGE_VERSION=1\nBUILT_MODULE_NAME=( a # the first\n \"b\" )", Config{
			Name: "a", Version: "1", Modules: []Module{{"a", ".", "a", "", false}, {"b", ".", "b", "", false}},
		}},
		{"unknown", "PACKAGE_NAME=a PACKAGE_VERSION=1\nn=`nproc`\nBUILT_MODULE_NAME[0]=a\nBUILT_MODULE_NAME[1]=\"a$(uname -m | tr '\"' ')' )\"\nBUILT_MODULE_NAME[$n]=c", Config{
			Name: "a", Version: "1", Modules: []Module{{"a", ".", "a", "", false}},
			Unknown: []string{"BUILT_MODULE_NAME[1] in line 4", "BUILT_MODULE_NAME in line 5"},
		}},
		{"commands beside", "pushd `dirname $BASH_SOURCE`\nPACKAGE_NAME=a\nPACKAGE_VERSION=1\npopd\necho PACKAGE_NAME=no >&2\nf() {\n  PACKAGE_X=2\n}", Config{
			Name: "a", Version: "1", Modules: []Module{{"a", ".", "a", "", false}},
		}},
	} {
		got, err := Parse([]byte(tt.in), vars)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got, want := fmt.Sprintf("%+v", *got), fmt.Sprintf("%+v", tt.want); got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", tt.name, got, want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	const head = "PACKAGE_NAME=a\nPACKAGE_VERSION=1\n"
	for _, tt := range []struct{ in, want string }{
		{"", "no plain value for PACKAGE_NAME"},
		{"PACKAGE_NAME=a\nPACKAGE_VERSION=$(cat VERSION)", "no plain value for PACKAGE_VERSION"},
		{"PACKAGE_NAME=../a\nPACKAGE_VERSION=1", `PACKAGE_NAME is "../a", want letters, digits and ._+~-`},
		{"PACKAGE_NAME=a\nPACKAGE_VERSION='#MODULE_VERSION#'", `PACKAGE_VERSION is "#MODULE_VERSION#"`},
		{head + "BUILT_MODULE_NAME=x/y", `line 3: module "x/y"`},
		{head + "\nBUILT_MODULE_NAME=x BUILT_MODULE_LOCATION=a/../../b", `line 4: BUILT_MODULE_LOCATION "a/../../b" leaves the source`},
		{head + "PATCH[0]=/etc/passwd", `line 3: patch "/etc/passwd" leaves the source`},
		{head + "PATCH[0]=$(ls)", "line 3: no plain value for PATCH[0]"},
		{head + "BUILT_MODULE_NAME[99999]=x", "line 3: BUILT_MODULE_NAME[99999]: index 99999, want at most 4096"},
		{head + "X=\"abc\n", `'"' is missing`},
		{head + "X='abc\n", "quotation is not closed"},
		{head + "X=(a b", "parenthesis is not closed"},
		{head + "X=" + strings.Repeat("$(", 200), "nested more than 100 deep"},
		{head + "A=" + strings.Repeat("x", 1000) + strings.Repeat("\nA=$A$A", 10), "value of A: more than 65536 bytes"},
		{strings.Repeat("#", MaxSize+1), "1048577 bytes, want at most 1048576"},
	} {
		_, err := Parse([]byte(tt.in), vars)
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.60q:\n got %v\nwant %s", tt.in, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(conditions)
	f.Add("PACKAGE_NAME=a PACKAGE_VERSION=1\nA=\"${x[']}\" B='x'\\\nPATCH[1+1]+=\"$(( 1+$i ))`x`\"\nX=(a \"b c\" # d\n)")
	f.Fuzz(func(t *testing.T, in string) {
		c, err := Parse([]byte(in), vars)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error of no known kind: %v", err)
			}
			return
		}
		for _, m := range c.Modules {
			if !nameValid.MatchString(m.Name) || !local(m.Location) || !local(m.Dest) {
				t.Fatalf("module %+v", m)
			}
		}
		for _, p := range c.Patches {
			if !local(p.File) {
				t.Fatalf("patch %+v", p)
			}
		}
	})
}
