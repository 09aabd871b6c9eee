package console

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestLines(t *testing.T) {
	var b strings.Builder
	c := New(&b, func() time.Duration { return 1234567 * time.Microsecond })
	c.Stage("layers", F("count", 3), F("empty", ""))
	c.Ready(F("version", "1.0 beta"), F("modules", "a,b"))
	c.Failed("state", errors.New("mount /dev/vda5:\n\"no\" \x1b[31mspace"))
	c.Failed("disk", errors.New("short"))
	c.Module(F("name", "a,b"), F("state", "skipped"), F("reason", "no such device"))
	c.Note("x=y")
	want := `kiln: stage=layers t=1.235 count=3 empty=-
kiln: ready version="1.0 beta" modules=a,b t=1.235
kiln: failed stage=state error="mount /dev/vda5:\n\"no\" \x1b[31mspace" t=1.235
kiln: failed stage=disk error="short" t=1.235
kiln: module name=a,b state=skipped reason="no such device" t=1.235
kiln: note text="x=y" t=1.235
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
