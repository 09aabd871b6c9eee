//go:build linux

package timesync

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSlew(t *testing.T) {
	tx := slew(-30*time.Millisecond, 64*time.Second, 2*time.Millisecond)
	if tx.Offset != -30e6 || tx.Constant != 2 || tx.Maxerror != 2000 || tx.Status != unix.STA_PLL || tx.Modes&unix.ADJ_NANO == 0 {
		t.Errorf("%+v", tx)
	}
	if tx := slew(0, maxPoll, 0); tx.Constant != 6 {
		t.Errorf("%+v", tx)
	}
}

func TestSave(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rtc")
	for _, none := range []string{"", file} {
		if err := (System{RTC: none}).Save(); err != nil {
			t.Errorf("%q: %v", none, err)
		}
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (System{RTC: file}).Save(); err == nil || !strings.HasSuffix(err.Error(), "rtc: inappropriate ioctl for device") {
		t.Error(err)
	}
}
