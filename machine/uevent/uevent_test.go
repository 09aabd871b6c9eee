package uevent

import (
	"maps"
	"strings"
	"testing"
)

func TestParseFile(t *testing.T) {
	got := ParseFile([]byte("MAJOR=254\nMINOR=5\nDEVNAME=vda5\nDEVTYPE=partition\nPARTN=5\nPARTNAME=STATE\nnonsense\n"))
	want := Event{"MAJOR": "254", "MINOR": "5", "DEVNAME": "vda5", "DEVTYPE": "partition", "PARTN": "5", "PARTNAME": "STATE"}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseMessage(t *testing.T) {
	message := "add@/devices/virtio0\x00ACTION=add\x00DEVPATH=/devices/virtio0\x00MODALIAS=virtio:d00000002v00001AF4\x00SEQNUM=7\x00"
	e, err := ParseMessage([]byte(message))
	if err != nil || e["MODALIAS"] != "virtio:d00000002v00001AF4" || len(e) != 4 {
		t.Errorf("got %v, %v", e, err)
	}
	for message, want := range map[string]string{
		"libudev\x00\xfe\xed\xca\xfe": `starts with "libudev", want "ACTION@DEVPATH"`,
		"":                            `starts with "", want`,
		"add@/x":                      `starts with "add@/x", want`,
		"add@/x\x00ACTION=remove\x00DEVPATH=/x\x00":  "disagrees with its own ACTION and DEVPATH",
		"add@/x\x00ACTION=add\x00DEVPATH=/other\x00": "disagrees",
		"@/x\x00ACTION=\x00DEVPATH=/x\x00":           "want \"ACTION@DEVPATH\"",
	} {
		if _, err := ParseMessage([]byte(message)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got error %v, want %s", message, err, want)
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add([]byte("add@/x\x00ACTION=add\x00DEVPATH=/x\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseMessage(data)
		if err == nil && (e["ACTION"] == "" || e["DEVPATH"] == "") {
			t.Errorf("accepted %q", data)
		}
		ParseFile(data)
	})
}
