package profiles_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kilnhq/kiln/profiles"
)

// Paths are relative to the file that names them.
func TestPaths(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"below/base.yaml": "version: v1alpha1\nextends: metal\nname: base\nuki: {splash: logo.bmp}\nextensions: [./zfs.oci, ../nvidia.oci, registry.example.com/tools:1, /abs.tar]\n",
		"top.yaml":        "version: v1alpha1\nextends: " + filepath.Join(dir, "below/base.yaml") + "\nname: top\n",
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, err := profiles.Load(filepath.Join(dir, "top.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "below/logo.bmp"); p.UKI.Splash != want {
		t.Errorf("splash %s, want %s", p.UKI.Splash, want)
	}
	want := []string{filepath.Join(dir, "below/zfs.oci"), filepath.Join(dir, "nvidia.oci"), "registry.example.com/tools:1", "/abs.tar"}
	if !slices.Equal(p.Extensions, want) {
		t.Errorf("extensions %q, want %q", p.Extensions, want)
	}
}
