//go:build linux

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/kilnhq/kiln/machine/api/files"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/control/kernellog"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/meta"
	"github.com/kilnhq/kiln/machine/network"
	"github.com/kilnhq/kiln/machine/platform"
	"github.com/kilnhq/kiln/machine/power"
	"github.com/kilnhq/kiln/machine/reset"
	"github.com/kilnhq/kiln/machine/service"
)

// Version is a verb of control.Node.
func (n *Node) Version(context.Context) (control.Version, error) {
	name, _ := os.Hostname()
	on, _ := n.options.Args.Get(platform.ArgPlatform)
	c, _ := n.current()
	return control.Version{
		Version: n.options.Version, Kernel: n.options.Release, Architecture: runtime.GOARCH, Platform: on,
		Hostname: name, MachineID: n.machineID.String(), Slot: n.options.Slot, Maintenance: c == nil || c.API == nil,
	}, nil
}

// Health is a verb of control.Node.
func (n *Node) Health(context.Context) (control.Health, error) {
	n.mu.Lock()
	ready, status, cfg, fault := n.ready, n.status, n.config, n.fault
	n.mu.Unlock()
	h := control.Health{Ready: ready, Stage: "start", Time: time.Now(), Uptime: uint64(console.SinceKernelStart() / time.Second)}
	if ready {
		h.Stage = "ready"
	}
	add := func(name string, passed bool, message string) {
		h.Checks = append(h.Checks, control.Check{Name: name, Passed: passed, Message: message})
	}
	if cfg == nil {
		fault = strings.TrimPrefix(fault+"; ", "; ") + "the node has no configuration; give it one with 'kiln node config apply'"
	}
	add("config", fault == "", fault)
	for _, label := range slices.Sorted(maps.Keys(n.options.Damaged)) {
		add(label, false, n.options.Damaged[label])
	}
	for label, dir := range n.volumes() {
		if text := full(dir); text != "" {
			add(label, false, text)
		}
	}
	if _, err := n.readMeta(); err != nil && !errors.Is(err, control.ErrState) {
		add(disk.Meta, false, err.Error())
	}
	var faults []string
	for _, f := range status.Faults {
		faults = append(faults, f.Text)
	}
	for _, l := range status.Links {
		addressed := slices.ContainsFunc(l.Addresses, func(a network.Address) bool { return a.Prefix.Addr().IsGlobalUnicast() })
		if !status.Ready && len(status.Faults) == 0 && l.Managed && !addressed {
			faults = append(faults, l.Name+": has no address yet")
		}
	}
	add("network", status.Ready, strings.Join(faults, "; "))
	clock := n.clock.syncer.Status()
	add("time", clock.Synced, strings.Join(clock.Faults, "; "))
	for _, s := range n.services.List() {
		if s.State != service.Stopped && s.State != service.Done {
			add("service "+s.Name, s.State == service.Running, s.Message)
		}
	}
	modules, err := n.Modules(context.Background())
	var failed []string
	for _, m := range modules.Modules {
		if m.State == "failed" {
			failed = append(failed, m.Name+": "+m.Reason)
		}
	}
	if err != nil {
		failed = append(failed, err.Error())
	}
	add("modules", len(failed) == 0, strings.Join(failed, "; "))
	return h, nil
}

// Events is a verb of control.Node.
func (n *Node) Events(ctx context.Context, r control.TailRequest, send func(control.Event) error) error {
	return n.events.Send(ctx, r, send)
}

// Modules is a verb of control.Node.
func (n *Node) Modules(context.Context) (control.ModuleList, error) {
	var list control.ModuleList
	data, err := os.ReadFile(n.options.Modules)
	if err == nil {
		err = json.Unmarshal(data, &list.Modules)
	}
	return list, err
}

// Extensions is a verb of control.Node.
func (n *Node) Extensions(context.Context) (control.ExtensionList, error) {
	data, err := os.ReadFile(n.options.Layers)
	if err != nil {
		return control.ExtensionList{}, err
	}
	all, err := layers.Decode(data)
	if err != nil {
		return control.ExtensionList{}, err
	}
	var list control.ExtensionList
	for _, l := range all.Layers {
		if l.Kind == layers.Extension {
			list.Extensions = append(list.Extensions, control.Extension{Name: l.Name, Version: l.Version, Size: uint64(l.Size), SHA256: l.SHA256})
		}
	}
	return list, nil
}

// disk opens the node's disk. The error is control.ErrState if it has none.
func (n *Node) disk(flag int) (*os.File, int64, error) {
	if n.options.Disk == "" {
		return nil, 0, fmt.Errorf("%w: it was started from no disk", control.ErrState)
	}
	f, err := os.OpenFile(n.options.Disk, flag, 0)
	if err != nil {
		return nil, 0, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, size, nil
}

// meta calls do with META of the node's disk, and what is in it.
func (n *Node) meta(flag int, do func(meta.Device, *meta.Contents) error) error {
	f, size, err := n.disk(flag)
	if err != nil {
		return err
	}
	defer f.Close()
	place, err := meta.Locate(f, size)
	if err != nil {
		return err
	}
	section := meta.Section(f, place.Offset, place.Size)
	contents, err := meta.Read(io.NewSectionReader(f, place.Offset, place.Size), place.Size)
	if err != nil {
		return err
	}
	return do(section, contents)
}

func (n *Node) readMeta() (values meta.Values, err error) {
	err = n.meta(os.O_RDONLY, func(_ meta.Device, c *meta.Contents) error {
		values = c.Values
		return nil
	})
	return values, err
}

// Meta is a verb of control.Node.
func (n *Node) Meta(context.Context, control.MetaRequest) (control.MetaList, error) {
	values, err := n.readMeta()
	var list control.MetaList
	for _, k := range values.Keys() {
		list.Values = append(list.Values, control.MetaValue{Key: uint32(k), Name: k.Name(), Value: values[k]})
	}
	return list, err
}

// SetMeta is a verb of control.Node.
func (n *Node) SetMeta(_ context.Context, r control.MetaList) error {
	return n.changeMeta(func(values meta.Values) error {
		for _, v := range r.Values {
			if v.Key == 0 || v.Key > 0xff {
				return fmt.Errorf("%w: META key %#x, want 0x01 to 0xff", control.ErrInvalid, v.Key)
			}
			values[meta.Key(v.Key)] = v.Value
		}
		return nil
	})
}

// DeleteMeta is a verb of control.Node.
func (n *Node) DeleteMeta(_ context.Context, r control.MetaKeys) (control.MetaDeleted, error) {
	var deleted control.MetaDeleted
	err := n.changeMeta(func(values meta.Values) error {
		for _, k := range r.Keys {
			if _, ok := values[meta.Key(k)]; ok {
				delete(values, meta.Key(k))
				deleted.Deleted = append(deleted.Deleted, k)
			}
		}
		return nil
	})
	return deleted, err
}

func (n *Node) changeMeta(change func(meta.Values) error) error {
	n.values.Lock() // what is read is what is written again
	defer n.values.Unlock()
	return n.meta(os.O_RDWR, func(d meta.Device, c *meta.Contents) error {
		values := c.Values
		if values == nil {
			values = meta.Values{}
		}
		if err := change(values); err != nil {
			return err
		}
		return meta.Write(d, values)
	})
}

// newMeta begins META anew.
func (n *Node) newMeta(values meta.Values) error {
	f, size, err := n.disk(os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	place, err := meta.Locate(f, size)
	if err != nil {
		return err
	}
	return meta.Write(meta.Section(f, place.Offset, place.Size), values)
}

// Reset is a verb of control.Node: what is to be erased is erased at the next
// start, which is now.
func (n *Node) Reset(_ context.Context, r control.ResetRequest) error {
	var parts []string
	if r.State {
		parts = append(parts, reset.State)
	}
	if r.Ephemeral {
		parts = append(parts, reset.Ephemeral)
	}
	if len(parts) == 0 {
		return fmt.Errorf("%w: reset of nothing, want STATE, EPHEMERAL or both", control.ErrInvalid)
	}
	err := n.changeMeta(func(values meta.Values) error {
		values[meta.ResetRequest] = []byte(strings.Join(parts, ","))
		return nil
	})
	if errors.Is(err, meta.ErrDamaged) { // nothing in it can be read any more
		err = n.newMeta(meta.Values{meta.ResetRequest: []byte(strings.Join(parts, ","))})
	}
	if err != nil {
		return err
	}
	action := power.Restart
	if r.Shutdown {
		action = power.Off
	}
	n.soon(action, "reset")
	return nil
}

// Power is a verb of control.Node.
func (n *Node) Power(ctx context.Context, r control.PowerRequest) error {
	switch r.Action {
	case control.Reboot:
		n.soon(power.Restart, "asked by "+control.Caller(ctx))
	case control.PowerOff:
		n.soon(power.Off, "asked by "+control.Caller(ctx))
	default:
		return fmt.Errorf("%w: action %q, want %s or %s", control.ErrInvalid, r.Action, control.Reboot, control.PowerOff)
	}
	return nil
}

// answering is how long an answer takes to reach who asked.
const answering = time.Second

// soon turns off or restarts the machine when the answer is on its way.
func (n *Node) soon(a power.Action, reason string) {
	time.AfterFunc(answering, func() { n.options.Power(power.Request{Action: a, Reason: reason}) })
}

// Dmesg is a verb of control.Node.
func (n *Node) Dmesg(ctx context.Context, r control.TailRequest, send func(control.DmesgLine) error) error {
	return kernellog.Send(ctx, kernellog.Device, r, send)
}

// ReadFile is a verb of control.Node, for administrators: all that is readable.
func (n *Node) ReadFile(ctx context.Context, r control.ReadRequest, send func(control.FileChunk) error) error {
	t, err := files.Open("/")
	if err != nil {
		return err
	}
	defer t.Close()
	return t.ReadFile(ctx, r, send)
}

// ListDirectory is a verb of control.Node, for administrators.
func (n *Node) ListDirectory(ctx context.Context, r control.ListRequest, send func(control.FileInfo) error) error {
	t, err := files.Open("/")
	if err != nil {
		return err
	}
	defer t.Close()
	return t.ListDirectory(ctx, r, send)
}
