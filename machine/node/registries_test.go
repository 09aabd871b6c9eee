//go:build linux

package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Nobody but the superuser reads a secret, and it goes when it should.
func TestSecretFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "conf.d", "secret")
	for _, tt := range []struct {
		data    []byte
		changed bool
	}{{nil, false}, {[]byte("one"), true}, {[]byte("one"), false}, {[]byte("two"), true}, {nil, true}, {nil, false}} {
		changed, err := secretFile(name, tt.data)
		if err != nil || changed != tt.changed {
			t.Errorf("%q: %v, %v; want %v", tt.data, changed, err, tt.changed)
		}
		fi, err := os.Stat(name)
		if tt.data == nil {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it is there: %v", err)
			}
			continue
		}
		if err != nil || fi.Mode() != 0o600 {
			t.Fatalf("%v, %v", fi, err)
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != string(tt.data) {
			t.Errorf("%q, %v; want %q", got, err, tt.data)
		}
	}
}
