//go:build linux

package test

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// bakery builds extensions for a base with the command, as an engineer would.
type bakery struct {
	kiln, base, kit, dir string
	kernel               string // package
}

func newBakery(t *testing.T, baseEnv, flavour string) *bakery {
	t.Helper()
	for _, tool := range []string{"make", "gcc", "ld", "strip", "bash"} {
		oracle.Tool(t, tool)
	}
	b := &bakery{kiln: oracle.Artifact(t, "KILN_BIN"), base: oracle.Artifact(t, baseEnv), dir: t.TempDir()}
	b.kit, b.kernel = filepath.Join(b.dir, "kit"), testDeb(t, "linux-image-*+deb??"+flavour+"-amd64_*.deb")
	b.run(t, "kernel", "kit", "--base", b.base, "--output", b.kit, "--headers", testDeb(t, "linux-headers-*+deb??"+flavour+"-amd64_*.deb"),
		"--headers", testDeb(t, "linux-headers-*-common_*.deb"), "--headers", testDeb(t, "linux-kbuild-*.deb"))
	return b
}

func (b *bakery) run(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, b.kiln, append(args, "--progress", "none")...)
}

// build builds an extension from a source and returns its path.
func (b *bakery) build(t *testing.T, source string, args ...string) string {
	t.Helper()
	out := filepath.Join(b.dir, filepath.Base(source)+".oci")
	b.run(t, append([]string{"extension", "build", "--module-source", source, "--kit", b.kit, "--base", b.base, "--output", out}, args...)...)
	return out
}

// boot composes an image with the extensions and waits until it is up.
func (b *bakery) boot(t *testing.T, extensions ...string) (milestone, *vm.Machine) {
	t.Helper()
	image := filepath.Join(b.dir, "metal.raw")
	args := []string{"build", "metal", "--base", b.base, "--cache", filepath.Join(b.dir, "cache"), "--output", image, "--kernel-arg", "loglevel=7"}
	for _, e := range extensions {
		args = append(args, "--extension", e)
	}
	b.run(t, args...)
	ctx, m := start(t, vm.Config{Image: image, Firmware: vm.UEFI, Snapshot: true})
	return ready(t, ctx, m), m
}

// loaded checks that the modules are on the node, and that none has failed.
func loaded(t *testing.T, up milestone, want ...string) {
	t.Helper()
	got := list(up.fields["modules"])
	if failed := up.fields["failed"]; failed != "-" {
		t.Errorf("ready with failed=%s", failed)
	}
	for _, name := range want {
		if !slices.Contains(got, name) {
			t.Errorf("ready with modules=%s, want %s to be one of them", up.fields["modules"], name)
		}
	}
}

// From sources to loaded modules: two extensions of which one uses a symbol of
// the other, with a parameter from its manifest, and two DKMS packages.
func TestModuleExtensions(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	t.Parallel()
	b := newBakery(t, "KILN_BASE", "-cloud")
	kilna := b.build(t, "testdata/kilna", "--no-load", "--option", "kilna level=7")
	kilnb := b.build(t, "testdata/kilnb", "--version", "1.0", "--below", kilna)

	var report struct {
		Layers []struct{ Manifest struct{ Requires []string } }
	}
	out := b.run(t, "extension", "inspect", "--json", kilnb)
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Layers) != 1 || !slices.Equal(report.Layers[0].Manifest.Requires, []string{"kilna"}) {
		t.Errorf("kilnb: %v, want it to require kilna\n%s", err, out)
	}
	all := []string{kilna, kilnb}
	for _, name := range []string{"rapiddisk", "vpoll"} {
		all = append(all, b.build(t, testDeb(t, name+"-dkms_*.deb"), "--load", name))
	}
	up, m := b.boot(t, all...)
	loaded(t, up, "kilna", "kilnb", "rapiddisk", "vpoll")
	// The kernel's own words: kilna came first, and with its parameter.
	for _, want := range []string{"kilna: level 7\n", "kilnb: kilna has level 7\n"} {
		if !strings.Contains(strings.ReplaceAll(m.Console(), "\r", ""), want) {
			t.Errorf("the console does not say %q", want)
		}
	}
}

// A driver for the kernel with all drivers, which needs modules of the kernel
// that the base does not have.
func TestModuleExtensionGeneric(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	t.Parallel()
	b := newBakery(t, "KILN_BASE_GENERIC", "")
	source := testDeb(t, "v4l2loopback-dkms_*.deb")
	up, _ := b.boot(t, b.build(t, source, "--kernel", b.kernel, "--load", "v4l2loopback devices=2"))
	loaded(t, up, "v4l2loopback", "videodev", "mc")
}
