//go:build linux

package timesync

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
)

// skewed is the machine's clock, wrong by some time. It is never set.
type skewed struct{ wrong time.Duration }

func (c *skewed) Now() time.Time { return time.Now().Add(c.wrong).Round(0) }

func (c *skewed) Step(offset time.Duration) error {
	c.wrong += offset
	return nil
}

func (c *skewed) Slew(offset, _, _ time.Duration) error { return c.Step(offset) }
func (c *skewed) Save() error                           { return nil }

// A server that nobody here wrote says what time it is.
func TestChrony(t *testing.T) {
	// Its Debian package would take charge of the clock of the machine, and so
	// it is not one of those that tests require.
	chronyd, err := exec.LookPath("chronyd")
	if err != nil {
		t.Skip("SKIPPED: chronyd is not installed")
	}
	oracle.Root(t)
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.LocalAddr().(*net.UDPAddr).Port
	free.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "chrony.conf")
	text := fmt.Sprintf("local stratum 3\nallow 127.0.0.1\nport %d\nbindaddress 127.0.0.1\ncmdport 0\nbindcmdaddress /\npidfile %s/pid\n", port, dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(chronyd, "-x", "-d", "-u", "root", "-f", config)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})

	c := &skewed{wrong: -time.Since(time.Unix(0, 0))}
	s := New(Config{Clock: c, Earliest: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	}})
	s.SetServers([]string{"chrony"})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() {
		s.Run(ctx)
		close(done)
	}()
	select {
	case <-s.Synced():
	case <-ctx.Done():
		t.Fatalf("%+v", s.Status())
	}
	cancel()
	<-done
	// Half of the exchange is what nobody can know better.
	if c.wrong.Abs() > s.Status().Delay/2+time.Millisecond || s.Status().Stratum != 3 {
		t.Errorf("wrong by %v, %+v", c.wrong, s.Status())
	}
}
