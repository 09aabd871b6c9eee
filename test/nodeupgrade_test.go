//go:build linux

package test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/machine/api/client"
	"github.com/kilnhq/kiln/machine/config"
)

// configured composes a disk of a node with a base and a configuration, and returns
// it, a client for it with the role admin, and the directory that 'kiln config
// generate' has filled.
func configured(t *testing.T, base string, flags ...string) (disk string, admin remote, dir string) {
	t.Helper()
	kiln := oracle.Artifact(t, "KILN_BIN")
	dir = t.TempDir()
	run(t, kiln, "config", "generate", "--hostname", "node1", "--address", "127.0.0.1", "--output", dir)
	disk = filepath.Join(t.TempDir(), "disk.raw")
	args := []string{"build", "metal", "--base", base, "--cache", t.TempDir(), "--config", filepath.Join(dir, "machine.yaml"), "--output", disk}
	run(t, kiln, append(args, flags...)...)
	if err := os.Truncate(disk, 2<<30); err != nil { // EPHEMERAL grows
		t.Fatal(err)
	}
	admin = remote{kiln: kiln, endpoint: fmt.Sprintf("127.0.0.1:%d", freePort(t)), contexts: filepath.Join(dir, "client.yaml")}
	return disk, admin, dir
}

// port is the one that leads to the node's API.
func (r remote) port(t *testing.T) int {
	t.Helper()
	var n int
	if _, err := fmt.Sscanf(r.endpoint, "127.0.0.1:%d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// dial connects to the node as its client does.
func (r remote) dial(t *testing.T) v1alpha1.NodeClient {
	t.Helper()
	return v1alpha1.NewNodeClient(connect(t, r.endpoint, r.context(t)))
}

// context is the current one.
func (r remote) context(t *testing.T) config.Context {
	t.Helper()
	all, err := config.ParseContexts(r.contexts, read(t, r.contexts))
	if err != nil {
		t.Fatal(err)
	}
	c, ok := all.Contexts[all.Current]
	if !ok {
		t.Fatalf("%s: %+v", r.contexts, all)
	}
	return c
}

func connect(t *testing.T, endpoint string, c config.Context) *grpc.ClientConn {
	t.Helper()
	conn, err := client.Dial(client.Target{Node: "127.0.0.1", Endpoint: endpoint, Context: &c})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A node takes another system through its API, restarts into it, and goes back.
// What is no image, or comes only half, changes nothing.
func TestNodeUpgrade(t *testing.T) {
	t.Parallel()
	disk, admin, _ := configured(t, oracle.Artifact(t, "KILN_BASE"), "--extension", oracle.Artifact(t, "KILN_EXTENSION"))
	image := filepath.Join(t.TempDir(), "kiln.installer.tar")
	run(t, admin.kiln, "build", "installer", "--installer-program", admin.kiln, "--base", oracle.Artifact(t, "KILN_BASE"),
		"--extension", oracle.Artifact(t, "KILN_EXTENSION"), "--kernel-arg", "kiln.test=new", "--cache", t.TempDir(), "--output", image)

	const firmware = vm.BIOS
	ctx, m := startWithin(t, 6*patience, vm.Config{Image: disk, Firmware: firmware, Forward: map[int]int{admin.port(t): 50000}, Restart: true})
	isUp := func(slot string) {
		t.Helper()
		if up := ready(t, ctx, m); up.fields["slot"] != slot {
			t.Fatalf("ready with slot=%s, want %s", up.fields["slot"], slot)
		}
		if _, err := m.Wait(ctx, goodLine); err != nil {
			t.Fatal(err)
		}
		if s := slotOf(t, disk, firmware); s.Slot != slot || s.Trial != "" {
			t.Errorf("%+v, want slot %s", s, slot)
		}
	}
	unchanged := func() {
		t.Helper()
		if s := slotOf(t, disk, firmware); s.Slot != "A" || s.Trial != "" {
			t.Errorf("%+v, want slot A", s)
		}
		admin.refused(t, []string{"ls", "/var/lib/kiln/upgrade"}, "no such file")
	}
	isUp("A")

	garbage := save(t, "garbage", bytes.Repeat([]byte("kiln"), 1<<18))
	admin.refused(t, []string{"upgrade", "--image", garbage}, "not an installer image", "it is no tar archive")
	unchanged()
	t.Run("a client goes away", func(t *testing.T) { breaksOff(t, admin, image) })
	unchanged()

	began := time.Now()
	out := admin.run(t, "upgrade", "--image", image)
	t.Logf("%s in %v", out, time.Since(began).Round(time.Second))
	if !strings.Contains(out, "restart: slot B has the new system") {
		t.Errorf("kiln node upgrade: %s", out)
	}
	isUp("B")
	if out := admin.run(t, "read", "/proc/cmdline"); !strings.Contains(out, "kiln.test=new") {
		t.Errorf("/proc/cmdline: %s", out)
	}
	isManaged(t, admin) // with the same configuration
	sound(t, disk)

	if out := admin.run(t, "rollback", "--reboot"); !strings.Contains(out, "slot A boots next") {
		t.Errorf("kiln node rollback: %s", out)
	}
	isUp("A")
	if out := admin.run(t, "read", "/proc/cmdline"); strings.Contains(out, "kiln.test=new") {
		t.Errorf("/proc/cmdline: %s", out)
	}
	shutdown(t, ctx, m)
}

// breaksOff sends half an image and goes away. Meanwhile nobody else can upgrade.
func breaksOff(t *testing.T, admin remote, image string) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := admin.dial(t).Upgrade(ctx)
	if err != nil {
		t.Fatal(err)
	}
	data := read(t, image)
	send := func(m *v1alpha1.UpgradeRequest) {
		t.Helper()
		if err := s.Send(m); err != nil {
			_, err = s.Recv()
			t.Fatal(err)
		}
	}
	send(&v1alpha1.UpgradeRequest{Part: &v1alpha1.UpgradeRequest_Options{Options: &v1alpha1.UpgradeOptions{Size: uint64(len(data)), Reboot: true}}})
	const part = 1 << 20
	for at := 0; at < len(data)/2; at += part {
		send(&v1alpha1.UpgradeRequest{Part: &v1alpha1.UpgradeRequest_Data{Data: data[at:min(at+part, len(data)/2)]}})
	}
	for {
		p, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if p.GetDone() == uint64(len(data)/2) {
			break
		}
		if p.GetDone() > uint64(len(data)/4) {
			admin.refused(t, []string{"upgrade", "--image", image}, "slots are being changed already")
			break
		}
	}
	cancel()
	// The node has noticed when it has removed what it had.
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Second) {
		out, err := admin.command("ls", "/var/lib/kiln/upgrade").CombinedOutput()
		if err != nil && strings.Contains(string(out), "no such file") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the node keeps what it had: %s, %v", out, err)
		}
	}
}
