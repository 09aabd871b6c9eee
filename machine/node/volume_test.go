//go:build linux

package node

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnhq/kiln/machine/platform/store"
)

// What becomes of EPHEMERAL is in the configuration that is in force, or in the one
// before it if that is damaged; nothing is made anew without being told to.
func TestAnew(t *testing.T) {
	const (
		volume   = "apiVersion: v1alpha1\nkind: Volume\nname: EPHEMERAL\n"
		recreate = volume + "damaged: recreate\n"
		hostname = "apiVersion: v1alpha1\nkind: Hostname\nhostname: node1\n"
	)
	for _, tt := range []struct {
		name, current, previous string
		want                    bool
	}{
		{"none", "", "", false},
		{"silent", hostname, recreate, false},
		{"default", volume, "", false},
		{"recreate", recreate, "", true},
		{"damaged", "\x00", recreate, true},
		{"both damaged", "\x00", "damaged: recreate", false},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{store.Name: tt.current, store.PreviousName: tt.previous} {
			if text == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := Anew(dir); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}
