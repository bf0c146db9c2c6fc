// Macros for guests. See `guest!` in guest.rs, which puts this before each guest; an assembly that has them
// already does not take them again.
.ifndef tiny_guest_macros
.set tiny_guest_macros, 1

.macro put8
    mov dx, {COM1}
    out dx, al
.endm

.macro say character
    mov al, \character
    put8
.endm

.macro put32
    mov dx, {COM1}
    .rept 4
    out dx, al
    shr eax, 8
    .endr
.endm

.macro put64
    mov dx, {COM1}
    .rept 8
    out dx, al
    shr rax, 8
    .endr
.endm

.macro send
    mov dx, {COM1}
.Lsend\@:
    lodsb
    out dx, al
    dec ecx
    jnz .Lsend\@
.endm

// Pages of 'x', each by one string instruction, which is faster than byte by byte.
.macro print_pages pages
    mov edi, 0x40000
    mov ecx, 4096
    mov al, 'x'
    rep stosb
    mov ebp, \pages
    mov dx, {COM1}
.Lpage\@:
    mov esi, 0x40000
    mov ecx, 4096
    rep outsb
    dec ebp
    jnz .Lpage\@
.endm

.macro write_port port, value
    mov dx, \port
    mov al, \value
    out dx, al
.endm

.macro power_off
    write_port {POWER}, {SOFT_OFF}
.Lpower_off\@:
    hlt
    jmp .Lpower_off\@
.endm

// Entries of 2 MiB: present, writable, not cached.
.macro map_gib gib, table
    mov edi, \table
    movabs rax, \gib << 30 | 0x93
    mov ecx, 512
.Lmap\@:
    mov [rdi], rax
    add rax, 0x200000
    add rdi, 8
    dec ecx
    jnz .Lmap\@
    mov qword ptr [{PDPT} + \gib * 8], \table | 3
.endm

.macro store offset, value
    mov dword ptr [rbx + \offset], \value
.endm

// The virtio devices are in GiB 3.
.macro map_virtio
    map_gib 3, 0x12000
    mov ebx, {VIRTIO}
.endm

.macro accept_version_1
    store 0x70, 0
    store 0x70, 1
    store 0x70, 1 | 2
    store 0x24, 1
    store 0x20, 1
    store 0x24, 0
    store 0x20, 0
    store 0x70, 1 | 2 | 8
.endm

// Vector 0x40 of an IDT at 0x13000 (its page directory is at 0x12000): an interrupt gate to the boot's code
// segment. The local APIC is enabled by its spurious vector register; the I/O APIC's entry is edge-triggered,
// fixed, and goes to APIC 0.
.macro take_interrupt gsi, handler
    map_gib 3, 0x12000
    lea rax, [rip + \handler]
    mov edi, 0x13000 + 0x40 * 16
    mov [rdi], ax
    mov word ptr [rdi + 2], 0x10
    mov word ptr [rdi + 4], 0x8e00
    shr rax, 16
    mov [rdi + 6], ax
    mov qword ptr [rdi + 8], 0
    lidt [rip + .Lidt\@]
    mov ebp, {IO_APIC}
    mov dword ptr [rbp], 0x10 + \gsi * 2 + 1
    mov dword ptr [rbp + 0x10], 0
    mov dword ptr [rbp], 0x10 + \gsi * 2
    mov dword ptr [rbp + 0x10], 0x40
    mov ebx, {LOCAL_APIC}
    store 0xf0, 0x1ff
    jmp .Lset\@
.Lidt\@:
    .word 0x41 * 16 - 1
    .quad 0x13000
.Lset\@:
.endm

.macro end_of_interrupt
    store 0xb0, 0
.endm

// Queue 0 gets 8 descriptors at 0x30000, the available ring at 0x31000 and the used ring at 0x32000.
.macro start_device
    accept_version_1
    store 0x30, 0
    store 0x38, 8
    store 0x80, 0x30000
    store 0x84, 0
    store 0x90, 0x31000
    store 0x94, 0
    store 0xa0, 0x32000
    store 0xa4, 0
    store 0x44, 1
    store 0x70, 1 | 2 | 4 | 8
.endm

// Flags are those of struct virtq_desc; the next one is the next index.
.macro descriptor index, address, length, flags
    mov qword ptr [0x30000 + \index * 16], \address
    mov dword ptr [0x30008 + \index * 16], \length
    mov dword ptr [0x3000c + \index * 16], (\flags) | (\index + 1) << 16
.endm

// The chain that begins with descriptor 0 is the only one in the available ring; a notification follows.
.macro offer
    mov word ptr [0x31004], 0
    mov word ptr [0x31002], 1
    store 0x50, 0
.endm

.macro await_used count
.Lused\@:
    pause
    cmp word ptr [0x32002], \count
    jne .Lused\@
.endm

.endif
