//go:build linux

package node

import (
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/machine/control"
)

func receiving(text string, size uint64) (*incoming, *[]control.UpgradeProgress) {
	var told []control.UpgradeProgress
	return &incoming{from: strings.NewReader(text), left: size, total: size, sum: sha256.New(), send: func(p control.UpgradeProgress) error {
		told = append(told, p)
		return nil
	}}, &told
}

// What comes is as long as was announced, and has the digest.
func TestIncoming(t *testing.T) {
	sum := sha256.Sum256([]byte("image"))
	in, told := receiving("image", 5)
	if data, err := io.ReadAll(in); err != nil || string(data) != "image" || in.compare(sum[:]) != nil || in.compare(nil) != nil {
		t.Errorf("%q, %v", data, err)
	}
	if last := (*told)[len(*told)-1]; last.Step != "receive" || last.Done != 5 || last.Total != 5 {
		t.Errorf("%+v", last)
	}
	if err := in.compare(make([]byte, sha256.Size)); !errors.Is(err, control.ErrInvalid) || !strings.Contains(err.Error(), "it was damaged on its way") {
		t.Error(err)
	}

	in, _ = receiving("image", 4)
	if _, err := io.ReadAll(in); !errors.Is(err, control.ErrInvalid) || !strings.HasSuffix(err.Error(), "the image has more than the 4 bytes that were announced") {
		t.Error(err)
	}
	in, _ = receiving("image", 7)
	if _, err := io.ReadAll(in); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.HasPrefix(err.Error(), "the image ends 2 bytes early") {
		t.Error(err)
	}
	if err := in.compare(nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}

	// Whoever does not want to hear of it any more ends it.
	in, _ = receiving("image", 5)
	gone := errors.New("gone")
	in.send = func(control.UpgradeProgress) error { return gone }
	if _, err := io.ReadAll(in); !errors.Is(err, gone) {
		t.Error(err)
	}
}

func TestPlatformOf(t *testing.T) {
	dir := t.TempDir()
	if got := platformOf(dir); got != "" {
		t.Errorf("%q without a profile", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "profile.yaml"), []byte("version: v1alpha1\nname: x\nplatform: aws\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := platformOf(dir); got != "aws" {
		t.Errorf("%q, want aws", got)
	}
}

// One change of the slots at a time.
func TestUpgradeIsAlone(t *testing.T) {
	n := &Node{}
	n.slots.Lock()
	if err := n.Upgrade(t.Context(), control.UpgradeRequest{}, nil, nil); !errors.Is(err, control.ErrBusy) {
		t.Error(err)
	}
	if _, err := n.Rollback(t.Context(), control.RollbackRequest{}); !errors.Is(err, control.ErrBusy) {
		t.Error(err)
	}
	n.slots.Unlock()
	if err := n.Upgrade(t.Context(), control.UpgradeRequest{}, nil, nil); !errors.Is(err, control.ErrState) {
		t.Error(err)
	}
}
