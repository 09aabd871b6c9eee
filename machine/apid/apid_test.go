//go:build linux

package apid

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/machine/api/client"
	"github.com/kilnhq/kiln/machine/api/selfsigned"
	"github.com/kilnhq/kiln/machine/control"
)

// asApid makes the test's program apid.
const asApid = "KILN_TEST_APID"

func TestMain(m *testing.M) {
	if os.Getenv(asApid) == "1" {
		os.Exit(Main())
	}
	os.Exit(m.Run())
}

// apid returns the command that runs apid as a user.
func apid(t *testing.T, uid uint32, args ...string) *exec.Cmd {
	c := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	c.Env = []string{asApid + "=1"}
	if os.Geteuid() == 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	return c
}

func TestNotAsRoot(t *testing.T) {
	oracle.Root(t)
	out, err := apid(t, 0, "-listen", "127.0.0.1:0").CombinedOutput()
	want := "apid: started as root; start it as a user of its own, which PID 1 allows to ask (control.Server.Users)\n"
	if err == nil || string(out) != want {
		t.Errorf("%s, %v, want %s", out, err, want)
	}
}

// pid1 is what apid asks.
type pid1 struct {
	control.Unimplemented
	id control.Identity
}

func (p pid1) Identities(ctx context.Context, send func(control.Identity) error) error {
	if err := send(p.id); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (pid1) Version(ctx context.Context) (control.Version, error) {
	return control.Version{Hostname: control.Caller(ctx)}, nil
}

// The program as PID 1 starts it: a user of its own, and a socket.
func TestApid(t *testing.T) {
	uid := uint32(os.Getuid())
	if uid == 0 {
		uid = 65534
	}
	cert, key, fingerprint, err := selfsigned.New(rand.Reader, "kiln")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "apid")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := control.Listen(socket, int(uid))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, control.Server{Node: pid1{id: control.Identity{Maintenance: true, Certificate: cert, Key: key}}, Users: []uint32{uid}, Log: slog.New(slog.DiscardHandler)})

	c := apid(t, uid, "-listen", "127.0.0.1:0", "-control", socket)
	stderr, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	var address string
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		fmt.Fprintln(&log, lines.Text())
		if m := regexp.MustCompile(`msg="the API listens" address=(\S+)`).FindStringSubmatch(lines.Text()); m != nil {
			address = m[1]
		}
		if address != "" && strings.Contains(log.String(), "has an identity") {
			break
		}
	}
	rights, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nNoNewPrivs:\t1\n", "\nCapEff:\t0000000000000000\n", "\nCapPrm:\t0000000000000000\n", fmt.Sprintf("\nUid:\t%d\t%d\t%d\t%d\n", uid, uid, uid, uid)} {
		if !strings.Contains(string(rights), want) {
			t.Errorf("apid runs without %q:\n%s", want, rights)
		}
	}
	conn, err := client.Dial(client.Target{Node: address, Fingerprint: &fingerprint})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	node := v1alpha1.NewNodeClient(conn)
	v, err := node.Version(t.Context(), &v1alpha1.VersionRequest{})
	if err != nil || !strings.HasPrefix(v.GetHostname(), "nobody (no role) at 127.0.0.1:") {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := node.Disks(t.Context(), &v1alpha1.DisksRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := node.Reboot(t.Context(), &v1alpha1.RebootRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("error %v", err)
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("%v\n%s", err, log.String())
	}
	if strings.Contains(log.String(), "PRIVATE KEY") || strings.Contains(log.String(), string(key[40:60])) {
		t.Errorf("the log has the key: %s", log.String())
	}
}

func serve(t *testing.T, l *net.UnixListener, s control.Server) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
