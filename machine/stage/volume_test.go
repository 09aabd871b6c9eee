//go:build linux

package stage

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/platform/store"
)

// What becomes of EPHEMERAL is in the configuration that is in force, or in the one
// before it if that is damaged; nothing is made anew without being told to.
func TestPolicy(t *testing.T) {
	const (
		volume   = "apiVersion: v1alpha1\nkind: Volume\nname: EPHEMERAL\n"
		recreate = volume + "damaged: recreate\n"
		hostname = "apiVersion: v1alpha1\nkind: Hostname\nhostname: node1\n"
	)
	for _, tt := range []struct {
		name, current, previous string
		want                    config.DamagedPolicy
	}{
		{"none", "", "", config.DamagedKeep},
		{"silent", hostname, recreate, config.DamagedKeep},
		{"default", volume, "", config.DamagedKeep},
		{"recreate", recreate, "", config.DamagedRecreate},
		{"damaged", "\x00", recreate, config.DamagedRecreate},
		{"both damaged", "\x00", "damaged: recreate", config.DamagedKeep},
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
		if got := policy(store.Store{Dir: dir}); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
