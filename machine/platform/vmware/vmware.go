// Package vmware asks VMware's hypervisor for the variables that a virtual
// machine was given, "guestinfo".
//
// A program in a machine talks to the hypervisor through an I/O port, the
// "backdoor", which open-vm-tools describes (lib/include/backdoor_def.h,
// lib/message/message.c): it puts a magic number in EAX, a command in CX, the port
// in DX, and executes IN; the hypervisor changes the registers. Command 30 carries
// messages, four bytes at a time, on a channel:
//
//	ECX bits 31-16   step: 0 open, 1 length to send, 2 send, 3 length to receive,
//	                 4 receive, 5 received, 6 close; in the answer, a status
//	EDX bits 31-16   channel; in the answer to 0 the new one, and to 3 and 4 what
//	                 follows
//	EBX              protocol, length or four bytes, little-endian
//	ESI, EDI         cookie of the channel
//
// On the protocol RPCI one sends "info-get NAME", and receives "1 VALUE" or
// "0 REASON".
package vmware

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// MaxValue bounds the value of a variable, in bytes: 1 MiB in base64, and room.
const MaxValue = 2 << 20

// ErrOther is wrapped by Local's error on a machine of another hypervisor, or
// none.
var ErrOther = errors.New("not a machine of VMware")

// Registers are those that a call passes.
type Registers struct {
	AX, BX, CX, DX, SI, DI uint32
}

// A Port is a hypervisor. In does what the instruction IN does there.
type Port interface {
	In(r *Registers)
}

const (
	magic       = 0x564d5868
	port        = 0x5658
	command     = 30
	rpci        = 0x49435052
	withCookie  = 0x80000000
	success     = 1 << 0
	more        = 1 << 1 // there is something to receive
	checkpoint  = 1 << 4 // the machine was moved or restored: begin again
	sendsLength = 1      // in DX: a length follows
	sendsBytes  = 2
)

const (
	stepOpen = iota
	stepSendLength
	stepSend
	stepReceiveLength
	stepReceive
	stepReceived
	stepClose
)

// maxTries is how often a call is begun that the hypervisor interrupts.
const maxTries = 5

var errInterrupted = errors.New("VMware: the machine is being moved or restored")

// Get returns the value of a variable: "guestinfo.kiln.config". ok is false if
// there is none.
func Get(p Port, name string) (value string, ok bool, err error) {
	if strings.ContainsAny(name, " \x00") || name == "" {
		return "", false, fmt.Errorf("VMware: %q is no name of a variable", name)
	}
	var answer []byte
	for range maxTries {
		if answer, err = call(p, []byte("info-get "+name)); !errors.Is(err, errInterrupted) {
			break
		}
	}
	if err != nil {
		return "", false, fmt.Errorf("%w (asking for %s)", err, name)
	}
	// What is not set, and what the administrator does not let machines see, is
	// told apart by nothing but the wording.
	value, ok = strings.CutPrefix(string(answer), "1 ")
	if !ok && !strings.HasPrefix(string(answer), "0 ") {
		return "", false, fmt.Errorf("VMware: found the answer %.20q to info-get, want 1 or 0, and a space", answer)
	}
	if !ok {
		value = ""
	}
	return value, ok, nil
}

type channel struct {
	p      Port
	id     uint32
	si, di uint32
}

// call sends a message on a channel of its own, and returns the answer.
func call(p Port, message []byte) (answer []byte, err error) {
	r := Registers{AX: magic, BX: rpci | withCookie, CX: stepOpen<<16 | command, DX: port}
	p.In(&r)
	if r.CX>>16&success == 0 {
		return nil, errors.New("VMware: the hypervisor opens no channel")
	}
	c := &channel{p, r.DX >> 16, r.SI, r.DI}
	defer c.step(stepClose, 0)
	if err := c.send(message); err != nil {
		return nil, err
	}
	return c.receive()
}

// step makes one call. status is that of the answer.
func (c *channel) step(step, bx uint32) (r Registers, status uint32) {
	r = Registers{AX: magic, BX: bx, CX: step<<16 | command, DX: c.id<<16 | port, SI: c.si, DI: c.di}
	c.p.In(&r)
	return r, r.CX >> 16
}

func failed(status uint32, what string) error {
	if status&checkpoint != 0 {
		return errInterrupted
	}
	return fmt.Errorf("VMware: the hypervisor refused %s (status %#x)", what, status)
}

func (c *channel) send(message []byte) error {
	if _, status := c.step(stepSendLength, uint32(len(message))); status&success == 0 {
		return failed(status, "the length of a message")
	}
	for len(message) > 0 {
		var word [4]byte
		message = message[copy(word[:], message):]
		if _, status := c.step(stepSend, binary.LittleEndian.Uint32(word[:])); status&success == 0 {
			return failed(status, "a part of a message")
		}
	}
	return nil
}

func (c *channel) receive() ([]byte, error) {
	r, status := c.step(stepReceiveLength, 0)
	switch {
	case status&success == 0:
		return nil, failed(status, "to answer")
	case status&more == 0 || r.DX>>16 != sendsLength:
		return nil, errors.New("VMware: the hypervisor has no answer")
	case r.BX > MaxValue:
		return nil, fmt.Errorf("VMware: the answer has %d bytes, want at most %d", r.BX, MaxValue)
	}
	answer := make([]byte, 0, r.BX+3)
	size := int(r.BX)
	for len(answer) < size {
		r, status := c.step(stepReceive, success)
		if status&success == 0 || r.DX>>16 != sendsBytes {
			return nil, failed(status, "a part of its answer")
		}
		answer = binary.LittleEndian.AppendUint32(answer, r.BX)
	}
	if _, status := c.step(stepReceived, success); status&success == 0 {
		return nil, failed(status, "to end its answer")
	}
	return answer[:size], nil
}
