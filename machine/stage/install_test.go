//go:build linux

package stage

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/installer/tool"
	"github.com/kilnhq/kiln/machine/power"
)

func TestInstallationOf(t *testing.T) {
	const medium = "kiln.medium=ID "
	for line, want := range map[string]installation{
		"kiln.install.disk=/dev/sda": {"ID", "/dev/sda", "", false, power.Off},
		"kiln.install.disk=\"size > 1GB && name == 'sda'\" kiln.install.then=poweroff":  {"ID", "size > 1GB && name == 'sda'", "", false, power.Off},
		"kiln.install.disk=/dev/sda kiln.install.force kiln.install.then=reboot":        {"ID", "/dev/sda", "", true, power.Restart},
		"kiln.install.disk=/dev/sda kiln.install.force=false kiln.install.platform=kvm": {"ID", "/dev/sda", "kvm", false, power.Off},
		"kiln.install.disk=/dev/sda kiln.install.force=true":                            {"ID", "/dev/sda", "", true, power.Off},
	} {
		got, err := installationOf(cmdline.Parse(medium + line))
		if err != nil || *got != want {
			t.Errorf("%s: %+v, %v; want %+v", line, got, err, want)
		}
	}
	for line, want := range map[string]string{
		medium + "kiln.install.disk=":                              `kernel argument kiln.install.disk is empty; want a device, as /dev/sda, or an expression that matches one disk, as "size > 10GB && !removable"`,
		"kiln.install.disk=/dev/sda":                               "kernel argument kiln.install.disk: this image has nothing to install from, kiln.medium is missing; start the machine from an ISO image",
		medium + "kiln.install.disk=/dev/sda kiln.install.force=2": "kernel argument kiln.install.force=2: want it without a value, or true or false",
		medium + "kiln.install.disk=/dev/sda kiln.install.then=go": "kernel argument kiln.install.then=go: want poweroff or reboot",
	} {
		if in, err := installationOf(cmdline.Parse(line)); fmt.Sprint(err) != want {
			t.Errorf("%s: %+v, %v; want %s", line, in, err, want)
		}
	}
}

func TestInstallationCommand(t *testing.T) {
	head := []string{"install", "--progress", "json", "--source", "/run/kiln/medium/kiln"}
	for _, tt := range []struct {
		in   installation
		want []string
	}{
		{installation{disk: "/dev/sda"}, []string{"--disk", "/dev/sda"}},
		{installation{disk: "serial == `X1`", platform: "kvm", force: true}, []string{"--disk-selector", "serial == 'X1'", "--platform", "kvm", "--force"}},
	} {
		if got := tt.in.command(); !slices.Equal(got, append(slices.Clone(head), tt.want...)) {
			t.Errorf("%+v: %q, want %q", tt.in, got, tt.want)
		}
	}
}

// The console is told of what is worth telling, and no more often than at
// every tenth.
func TestFollow(t *testing.T) {
	var said strings.Builder
	for done := range 101 {
		fmt.Fprintf(&said, `{"done":%d,"event":"progress","step":"install on /dev/sda","total":100}`+"\n", done)
	}
	said.WriteString(`{"event":"extension","level":"info","name":"wireguard"}` + "\n")
	said.WriteString(`{"event":"the UKI is large","level":"warn"}` + "\n")
	said.WriteString(`{"event":"done","step":"install on /dev/sda","bytes":100,"seconds":1}` + "\n")
	said.WriteString("kiln: /dev/sda: not empty; use --force to overwrite it\n  and more\n")
	said.WriteString(strings.Repeat("x", 100_000) + "\nunread\n")
	var out bytes.Buffer
	s := &start{console: console.New(&out, func() time.Duration { return 0 })}
	in := strings.NewReader(said.String())
	if got, want := tool.Follow(in, s.tenths()), "/dev/sda: not empty; use --force to overwrite it\n  and more"; got != want || in.Len() > 0 {
		t.Errorf("%q with %d bytes left, want %q and none", got, in.Len(), want)
	}
	var want strings.Builder
	for n := 10; n <= 100; n += 10 {
		fmt.Fprintf(&want, "kiln: note text=\"install on /dev/sda: %d %%\" t=0.000\n", n)
	}
	want.WriteString("kiln: note text=\"the UKI is large\" t=0.000\n")
	if out.String() != want.String() {
		t.Errorf("the console has\n%swant\n%s", out.String(), want.String())
	}
}

func TestByArguments(t *testing.T) {
	got := byArguments("--disk-selector: bad; give --disk or --force, --platform kvm")
	if want := "kiln.install.disk: bad; give kiln.install.disk or kiln.install.force, kiln.install.platform kvm"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
