//go:build linux

package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"go.yaml.in/yaml/v4"
	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/grub"
	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/installer"
	"github.com/kilnhq/kiln/machine/installer/tool"
	"github.com/kilnhq/kiln/machine/platform"
	"github.com/kilnhq/kiln/machine/power"
	"github.com/kilnhq/kiln/machine/slots"
)

// upgradeDir is where an installer image is unpacked. What it takes is on EPHEMERAL,
// and only as long as the upgrade.
const upgradeDir = varDir + "/lib/kiln/upgrade"

// spare is what an upgrade leaves free of EPHEMERAL, in bytes.
const spare = 16 << 20

// errUpgrading is the error of what does not go together with an upgrade.
var errUpgrading = fmt.Errorf("%w: its slots are being changed already; try again when that is done", control.ErrBusy)

// forgetUpgrade removes what an upgrade that was cut short has left.
func (n *Node) forgetUpgrade() {
	if err := os.RemoveAll(upgradeDir); err != nil {
		n.remark("upgrade", "%v", err)
	}
}

// Upgrade is a verb of control.Node. The image is an installer image, whose program
// writes the slot; until it is done the disk boots what it booted before. If who
// asks goes away, that is the end of it.
func (n *Node) Upgrade(ctx context.Context, r control.UpgradeRequest, image io.Reader, send func(control.UpgradeProgress) error) error {
	if !n.slots.TryLock() {
		return errUpgrading
	}
	defer n.slots.Unlock()
	if err := n.upgradable(); err != nil {
		return err
	}
	defer n.forgetUpgrade()
	n.forgetUpgrade()
	if err := os.MkdirAll(upgradeDir, 0o700); err != nil {
		return err
	}
	n.event("upgrade", r.Reference, "begins, asked by "+control.Caller(ctx), nil)
	slot, err := n.upgrade(ctx, r, image, send)
	if err != nil {
		n.event("upgrade", r.Reference, "failed: "+err.Error(), nil)
		return err
	}
	n.event("upgrade", slot, "is started next", nil)
	last := control.UpgradeProgress{Step: "done", Slot: slot}
	if r.Reboot {
		last.Step = "restart"
		n.soon(power.Restart, "upgrade")
	}
	return send(last)
}

// upgradable returns an error if an upgrade would overwrite what runs.
func (n *Node) upgradable() error {
	d, done, err := n.openSlots(os.O_RDONLY)
	if err != nil {
		return err
	}
	defer done()
	s, err := d.State()
	if err != nil {
		return err
	}
	if next := grub.Other(s.Slot); n.options.Slot == next {
		return fmt.Errorf("%w: it runs the system in slot %s, which is not the confirmed one and would be overwritten; wait until it is confirmed, or restart the node", control.ErrState, next)
	}
	return nil
}

// openSlots opens the slots of the node's disk.
func (n *Node) openSlots(flag int) (d *slots.Disk, done func(), err error) {
	f, size, err := n.disk(flag)
	if err != nil {
		return nil, nil, err
	}
	if d, err = slots.Open(f, size); err != nil {
		f.Close()
		return nil, nil, err
	}
	return d, func() { f.Close() }, nil
}

func (n *Node) upgrade(ctx context.Context, r control.UpgradeRequest, image io.Reader, send func(control.UpgradeProgress) error) (slot string, err error) {
	img, err := n.receive(ctx, r, image, send)
	if err != nil {
		return "", err
	}
	args := []string{"upgrade", "--progress", "json", "--disk", n.options.Disk, "--source", img.Source}
	on, _ := n.options.Args.Get(platform.ArgPlatform)
	if of := platformOf(img.Source); on != "" && of != on {
		// The node stays what it is, whatever the image was made for first.
		args = append(args, "--set", "platform="+on)
	}
	if err := send(control.UpgradeProgress{Step: "compose"}); err != nil {
		return "", err
	}
	temporary := filepath.Join(upgradeDir, "tmp")
	if err := os.Mkdir(temporary, 0o700); err != nil {
		return "", err
	}
	_, err = tool.Run(ctx, n.options.Runner, img.Tool, args, temporary, func(e tool.Event) {
		switch {
		case e.Progress():
			// Who asks may be gone; then the context ends.
			_ = send(control.UpgradeProgress{Step: "write", Done: uint64(e.Done), Total: uint64(e.Total)})
		case e.Warning():
			n.event("upgrade", "", e.Event, nil)
		}
	})
	if err != nil {
		return "", err
	}
	d, done, err := n.openSlots(os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer done()
	s, err := d.State()
	return s.Trial, err
}

// receive unpacks the image.
func (n *Node) receive(ctx context.Context, r control.UpgradeRequest, image io.Reader, send func(control.UpgradeProgress) error) (*installer.Image, error) {
	if r.Reference != "" {
		return n.pull(ctx, r.Reference, send)
	}
	if len(r.SHA256) > 0 && len(r.SHA256) != sha256.Size {
		return nil, fmt.Errorf("%w: SHA-256 digest of %d bytes, want %d", control.ErrInvalid, len(r.SHA256), sha256.Size)
	}
	if err := room(int64(min(r.Size, 1<<62))); err != nil {
		return nil, err
	}
	in := &incoming{from: image, left: r.Size, sum: sha256.New(), total: r.Size, send: send}
	img, err := installer.New(upgradeDir, runtime.GOARCH).Archive(ctx, in)
	switch {
	case err == nil:
		err = in.compare(r.SHA256)
	case errors.Is(err, installer.ErrImage):
		err = fmt.Errorf("%w: %w", control.ErrInvalid, err)
	}
	return img, err
}

// room returns an error if there is none for an image of size bytes.
func room(size int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(upgradeDir, &s); err != nil {
		return &os.PathError{Op: "statfs", Path: upgradeDir, Err: err}
	}
	if free := int64(s.Bavail) * s.Bsize; size > free-spare {
		return fmt.Errorf("%w: %s has %s free, want %s for the image; free some, or grow the disk", control.ErrState, varDir, progress.Bytes(free), progress.Bytes(size+spare))
	}
	return nil
}

// incoming is an image that comes, and tells how much of it has.
type incoming struct {
	from  io.Reader
	left  uint64
	total uint64
	sum   hash.Hash
	send  func(control.UpgradeProgress) error
	told  time.Time
}

func (i *incoming) Read(p []byte) (int, error) {
	k, err := i.from.Read(p)
	if uint64(k) > i.left {
		return 0, fmt.Errorf("%w: the image has more than the %d bytes that were announced", control.ErrInvalid, i.total)
	}
	i.left -= uint64(k)
	i.sum.Write(p[:k])
	if errors.Is(err, io.EOF) && i.left > 0 {
		err = fmt.Errorf("the image ends %d bytes early: %w", i.left, io.ErrUnexpectedEOF)
	}
	if now := time.Now(); k > 0 && (i.left == 0 || now.Sub(i.told) >= interval) {
		i.told = now
		if e := i.send(control.UpgradeProgress{Step: "receive", Done: i.total - i.left, Total: i.total}); e != nil {
			return k, e
		}
	}
	return k, err
}

// interval is how often progress is told.
const interval = time.Second / 4

// compare returns an error if what came is not what was announced.
func (i *incoming) compare(want []byte) error {
	if i.left > 0 {
		return fmt.Errorf("the image ends %d bytes early: %w", i.left, io.ErrUnexpectedEOF)
	}
	if got := i.sum.Sum(nil); len(want) > 0 && string(got) != string(want) {
		return fmt.Errorf("%w: the image has the digest sha256:%s, want sha256:%s: it was damaged on its way, or changed while it was sent", control.ErrInvalid, hex.EncodeToString(got), hex.EncodeToString(want))
	}
	return nil
}

// platformOf returns the platform of a source directory's profile; "" if that
// cannot be read, about which kiln says more.
func platformOf(source string) string {
	data, err := os.ReadFile(filepath.Join(source, "profile.yaml"))
	var p struct {
		Platform string `yaml:"platform"`
	}
	if err == nil {
		err = yaml.Unmarshal(data, &p)
	}
	if err != nil {
		return ""
	}
	return p.Platform
}

// Rollback is a verb of control.Node.
func (n *Node) Rollback(_ context.Context, r control.RollbackRequest) (control.RollbackResult, error) {
	if !n.slots.TryLock() {
		return control.RollbackResult{}, errUpgrading
	}
	defer n.slots.Unlock()
	d, done, err := n.openSlots(os.O_RDWR)
	if err != nil {
		return control.RollbackResult{}, err
	}
	defer done()
	slot, err := d.Rollback()
	if errors.Is(err, slots.ErrNoSystem) {
		err = fmt.Errorf("%w: %w", control.ErrState, err)
	}
	if err != nil {
		return control.RollbackResult{}, err
	}
	n.event("slot", slot, "is started next", nil)
	if r.Reboot {
		n.soon(power.Restart, "rollback")
	}
	return control.RollbackResult{Slot: slot}, nil
}
