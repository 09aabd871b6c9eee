package vm

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
)

func TestMonitor(t *testing.T) {
	const greeting, ok, event = `{"QMP": {"version": {}, "capabilities": []}}`, `{"return": {}}`, `{"event": "POWERDOWN"}`
	for _, tc := range []struct {
		name    string
		answers string // to the connection and to each command, separated by |
		want    string // error
	}{
		{"works", greeting + "|" + ok + "|" + event + ok, ""},
		{"refuses", greeting + "|" + ok + "|" + `{"error": {"class": "CommandNotFound", "desc": "no such command"}}`,
			"monitor: system_powerdown: CommandNotFound: no such command"},
		{"ends", greeting + "|" + ok, "monitor: system_powerdown: EOF"},
		{"does not speak QMP", "hello", "monitor: greeting: invalid character 'h' looking for beginning of value"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			go func() {
				defer theirs.Close()
				r := bufio.NewScanner(theirs)
				for i, a := range strings.Split(tc.answers, "|") {
					if i > 0 && !r.Scan() {
						return
					}
					fmt.Fprintln(theirs, a)
				}
				r.Scan()
			}()
			err := newMonitor(ours).execute("system_powerdown", nil)
			if got := fmt.Sprint(err); tc.want == "" && err != nil || tc.want != "" && got != tc.want {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}
